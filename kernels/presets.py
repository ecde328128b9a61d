"""Launch parameters per GPU (source: seed, GPU configuration reference), mapped onto our kernels.

The seed's BLOCK_M becomes the chunk of tokens that one step handles, its BLOCK_N the columns of the state
that one program keeps. More than 64 tokens would square the work inside a chunk, and narrower states read
every key several times: what larger GPUs have more of goes into stages, as many as shared memory holds.
On one H100 (bfloat16, 8 heads of 64, a million tokens) the two passes over the tokens took, by columns,
warps and stages: 64, 4, 3: 1.14 + 1.77 ms; 64, 4, 1: 1.69 + 2.36 ms; 32, 4, 3: 1.88 + 3.25 ms; 64, 8, 2:
2.93 + 3.23 ms.
"""

from dataclasses import dataclass
from typing import Final

from kernels.launch import Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Meta-parameters of the kernels and the longest sequence that the GPU's memory is known to hold."""

    gpu: str
    vram_gb: int
    max_sequence_length: int
    chunk_size: int = 64
    block_v: int = 64
    num_warps: int = 4
    num_stages: int = 3
    programs: int = 4

    @property
    def launch(self) -> Launch:
        """The parameters as the operator takes them."""
        return Launch(self.chunk_size, self.block_v, self.num_warps, self.num_stages, self.programs)


DEFAULT: Final = Preset(gpu="any", vram_gb=0, max_sequence_length=100_000)
PRESETS: Final = (
    Preset(gpu="RTX 3090", vram_gb=24, max_sequence_length=200_000, num_stages=2),
    Preset(gpu="RTX 4090", vram_gb=24, max_sequence_length=250_000, num_stages=2),
    Preset(gpu="A100", vram_gb=80, max_sequence_length=1_048_576, num_stages=3),
    Preset(gpu="H100", vram_gb=80, max_sequence_length=1_048_576, num_stages=4),
    Preset(gpu="H200", vram_gb=141, max_sequence_length=1_048_576, num_stages=4),
)


def preset_for(gpu_name: str) -> Preset:
    """Return the preset whose name occurs in a device name such as `NVIDIA H200`, else the default."""
    return next((preset for preset in PRESETS if preset.gpu in gpu_name), DEFAULT)
