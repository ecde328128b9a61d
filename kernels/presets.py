"""Launch parameters per GPU (source: seed, GPU configuration reference), mapped onto our kernels.

The seed's BLOCK_M becomes the chunk of tokens that one step handles, its BLOCK_N the columns of the state
that one program keeps. More than 64 tokens would square the work inside a chunk, and narrower states read
every key several times: what larger GPUs have more of goes into stages, as many as shared memory holds.
On one H100 (bfloat16, 8 heads of 64, a million tokens) the two passes over the tokens of one version of the
kernels took, by columns, warps and stages: 64, 4, 3: 1.47 + 1.85 ms; 64, 4, 1: 1.82 + 2.36 ms; 32, 4, 3:
1.88 + 3.25 ms; 64, 8, 2: 2.93 + 3.23 ms.
"""

from dataclasses import dataclass, replace
from typing import Final

from kernels.launch import Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How to launch on a GPU, and the longest sequence that its memory is known to hold."""

    gpu: str
    vram_gb: int
    max_sequence_length: int
    launch: Launch


_USUAL: Final = Launch(chunk_size=16, block_v=64, num_warps=4, num_stages=6, programs=2)
_TWO_STAGES, _FOUR_STAGES = replace(_USUAL, num_stages=2), replace(_USUAL, num_stages=4)

DEFAULT: Final = Preset(gpu="any", vram_gb=0, max_sequence_length=100_000, launch=_USUAL)
PRESETS: Final = (
    Preset(gpu="RTX 3090", vram_gb=24, max_sequence_length=200_000, launch=_TWO_STAGES),
    Preset(gpu="RTX 4090", vram_gb=24, max_sequence_length=250_000, launch=_TWO_STAGES),
    Preset(gpu="A100", vram_gb=80, max_sequence_length=1_048_576, launch=_USUAL),
    Preset(gpu="H100", vram_gb=80, max_sequence_length=1_048_576, launch=_FOUR_STAGES),
    Preset(gpu="H200", vram_gb=141, max_sequence_length=1_048_576, launch=_FOUR_STAGES),
)


def preset_for(gpu_name: str) -> Preset:
    """Return the preset whose name occurs in a device name such as `NVIDIA H200`, else the default."""
    return next((preset for preset in PRESETS if preset.gpu in gpu_name), DEFAULT)
