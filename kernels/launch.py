"""The parameters of a launch, apart from the kernels: readable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launch:
    """How the chunked operator is launched."""

    chunk_size: int
    """Tokens that one step handles."""
    block_v: int
    """Columns of the state that one program keeps."""
    num_warps: int
    num_stages: int
    """Chunks on their way to the chip, where its shared memory holds them."""
    programs: int
    """Segments x heads for each multiprocessor: enough to hide latency."""
