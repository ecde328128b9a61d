"""How sequences are cut: every token once, in order, and only where it pays."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.segments import cut, processor_count, segment_size

CPU = torch.device("cpu")


@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    chunk_size=st.sampled_from([16, 32, 64]),
    size=st.integers(1, 5),
)
def test_segments_cover_every_sequence_once(lengths: list[int], chunk_size: int, size: int) -> None:
    boundaries = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    segments = cut(boundaries, chunk_size, size, CPU)
    next_token, next_chunk = 0, 0
    for number, (first, end, chunk, sequence, is_last) in enumerate(segments.table.tolist()):
        assert (first, chunk) == (next_token, next_chunk)
        assert first <= end <= min(first + size * chunk_size, boundaries[sequence + 1])
        assert boundaries[sequence] <= first
        assert (first - boundaries[sequence]) % chunk_size == 0
        assert is_last == (end == boundaries[sequence + 1])
        assert segments.firsts[sequence] <= number < segments.firsts[sequence + 1]
        next_token, next_chunk = end, chunk + -(-(end - first) // chunk_size)
    assert (next_token, next_chunk) == (boundaries[-1], segments.chunks)
    assert segments.count == len(segments.table) == segments.firsts[-1]
    assert segments.is_split == (segments.count > len(lengths))
    assert segments.longest <= size


def test_long_sequences_of_few_heads_fill_the_processors() -> None:
    size = segment_size((0, 1_000_000), 8, 16, 2 * 132)
    programs = -(-62_500 // size) * 8
    assert 1.9 * 132 <= programs <= 2 * 132


def test_many_heads_and_short_sequences_are_not_cut() -> None:
    assert segment_size(tuple(range(0, 65 * 4096, 4096)), 16, 16, 2 * 132) == 256
    assert segment_size((0, 100), 8, 16, 2 * 132) == 7
    assert segment_size((0, 0), 8, 16, 2 * 132) == 1


def test_one_long_sequence_among_many_short_ones_is_cut() -> None:
    boundaries = (*range(1001), 1_001_000)
    assert segment_size(boundaries, 8, 16, 2 * 132) < 62_500 // 30


def test_a_cpu_cuts_nothing() -> None:
    assert processor_count(CPU) == 1
    assert segment_size((0, 256), 2, 64, 4) == 4
