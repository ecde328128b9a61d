"""Launch parameters per GPU (source: seed, GPU configuration reference), mapped onto our kernels.

The seed's BLOCK_M becomes the chunk of tokens that one step handles, its BLOCK_N the columns of the state
that one program keeps, its num_stages the chunks on their way. Its larger blocks on larger GPUs do not carry
over: chunks of 16 were faster than of 32 and 64 on an H100 and an H200 (docs/kernels.md), and
narrower states read every key several times. These are where `quasar-node tune` begins.
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


_USUAL: Final = Launch(chunk_size=16, block_v=64, num_warps=4, num_stages=4, programs=4)
_THREE_STAGES: Final = replace(_USUAL, num_stages=3)

DEFAULT: Final = Preset(gpu="any", vram_gb=0, max_sequence_length=100_000, launch=_USUAL)
PRESETS: Final = (
    Preset(gpu="RTX 3090", vram_gb=24, max_sequence_length=200_000, launch=_THREE_STAGES),
    Preset(gpu="RTX 4090", vram_gb=24, max_sequence_length=250_000, launch=_THREE_STAGES),
    Preset(gpu="A100", vram_gb=80, max_sequence_length=1_048_576, launch=_USUAL),
    Preset(gpu="H100", vram_gb=80, max_sequence_length=1_048_576, launch=_USUAL),
    Preset(gpu="H200", vram_gb=141, max_sequence_length=1_048_576, launch=_USUAL),
)


def preset_for(gpu_name: str) -> Preset:
    """Return the preset whose name occurs in a device name such as `NVIDIA H200`, else the default."""
    return next((preset for preset in PRESETS if preset.gpu in gpu_name), DEFAULT)
