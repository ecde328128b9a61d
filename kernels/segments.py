"""How the tokens of a call are cut: chunks, a step each, and segments, which run side by side."""

import functools
import math
from dataclasses import dataclass
from itertools import pairwise

import torch

SCAN_TOKENS = 16
"""Tokens that both passes handle while the scan that joins the segments takes one step."""
MIN_TOKENS = 256
MIN_SEGMENTS = 3
"""Fewer or shorter segments are not worth the second pass and the launches for it."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Where segments begin and end, on the device.

    table int64 [S, 5]: first token, end, first chunk, sequence, 1 for the last segment of a sequence.
    firsts int64 [N + 1]: the first segment of each sequence.
    """

    table: torch.Tensor
    firsts: torch.Tensor
    count: int
    """Segments."""
    chunks: int
    """Chunks of all segments together."""
    longest: int
    """Chunks of the longest segment."""
    is_split: bool
    """True when a sequence has more than one segment, so that their states must be joined."""


def segment_size(boundaries: tuple[int, ...], heads: int, chunk_size: int, programs: int) -> int:
    """Return the chunks of a segment, for so many programs: the place where the schedule is chosen by shape.

    Cutting a sequence costs a second pass over its keys and values, and pays when heads and sequences alone
    leave processors idle. A segment is long enough for the programs to be few, and for the scan over the
    segments of the longest sequence not to take longer than the segments themselves.
    """
    lengths = [-(-(end - start) // chunk_size) for start, end in pairwise(boundaries)]
    longest = max(lengths)
    fair = -(-sum(lengths) * heads // programs)
    size = max(MIN_TOKENS // chunk_size, fair, math.isqrt(longest * SCAN_TOKENS // chunk_size))
    return max(1, longest) if MIN_SEGMENTS * size > longest else size


def cut(boundaries: tuple[int, ...], chunk_size: int, size: int, device: torch.device) -> Segments:
    """Cut sequences with the given boundaries into segments of `size` chunks, at least one for each."""
    borders = torch.tensor(boundaries, dtype=torch.int64)
    starts, ends = borders[:-1], borders[1:]
    tokens = size * chunk_size
    counts = ((ends - starts + tokens - 1) // tokens).clamp_min(1)
    firsts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    sequence = torch.repeat_interleave(counts)
    within = torch.arange(len(sequence)) - firsts[sequence]
    first = starts[sequence] + within * tokens
    end = torch.minimum(first + tokens, ends[sequence])
    chunks = (end - first + chunk_size - 1) // chunk_size
    is_last = within == counts[sequence] - 1
    table = torch.stack([first, end, chunks.cumsum(0) - chunks, sequence, is_last.long()], dim=1)
    return Segments(
        table=table.to(device),
        firsts=firsts.to(device),
        count=len(sequence),
        chunks=int(chunks.sum()),
        longest=int(chunks.max()),
        is_split=int(counts.max()) > 1,
    )


@functools.cache
def processor_count(device: torch.device) -> int:
    """Return the multiprocessors of a GPU; 1 for a CPU, where nothing is gained by cutting."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
