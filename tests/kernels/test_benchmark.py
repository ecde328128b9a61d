"""No speed without a right result; every failure is a row that says why."""

from pathlib import Path

import pytest
import torch

from kernels.benchmark import CHUNK, Benchmark, Drawn, Peer, Row, machine, peers
from kernels.benchmark_layer import DECODE, IDLE, LAYER, decode_rows, layer_rows
from kernels.benchmark_plot import plot
from kernels.harness.inputs import Shape

SHAPES = [Shape(batch=1, length=length, heads=2, dim=32, dtype="float32") for length in (32, 64)]


def rows_of(device: torch.device, chosen: list[Peer], shapes: list[Shape] = SHAPES) -> list[Row]:
    return list(Benchmark(device, repetitions=3).run(shapes, chosen))


def test_every_peer_of_this_machine_is_right_and_timed(device: torch.device) -> None:
    chosen = [peer for peer in peers(device) if not peer.name.startswith("FLA")]
    rows = rows_of(device, chosen, SHAPES[:1])
    assert [row.operator for row in rows] == [peer.name for peer in chosen]
    assert rows[0].operator == CHUNK
    for row in rows:
        assert row.skipped == ""
        assert row.milliseconds is not None
        assert row.tokens_per_sec == pytest.approx(32 / row.milliseconds * 1e3)
        assert row.weighted_score == pytest.approx(row.tokens_per_sec / 2)
        assert row.relative_error is not None
        assert row.relative_error < 1e-5
        assert row.floor_share is not None
        assert row.spread is not None
        assert row.spread >= 0


def test_wrong_result_has_an_error_and_no_speed(device: torch.device) -> None:
    (row, _) = rows_of(device, [Peer(name="identity", operator=lambda x: x.v, longest=100)])
    assert row.skipped.startswith("wrong: relative error")
    assert row.relative_error is not None
    assert row.milliseconds is None


def test_layer_is_compared_where_it_is_cheap_and_timed_where_it_is_long(device: torch.device) -> None:
    rows = list(layer_rows(Benchmark(device, repetitions=2), [40], heads=2, dim=16))
    assert [row.operator for row in rows] == [LAYER, IDLE]
    assert all(row.milliseconds is not None for row in rows), rows
    assert all(row.relative_error is not None and 0 < row.relative_error < 2e-2 for row in rows)


def test_decoding_is_checked_and_timed(device: torch.device) -> None:
    rows = list(decode_rows(Benchmark(device, repetitions=2), sequences=3, heads=2, dim=16))
    assert rows[0].operator == DECODE
    assert rows[0].milliseconds is not None, rows
    assert (rows[0].batch, rows[0].length) == (3, 1)


def test_wrong_softmax_is_noticed(device: torch.device) -> None:
    peer = Peer(
        name="mean", operator=lambda x: x.v.mean(1, keepdim=True) + 0 * x.v, longest=100, is_softmax=True
    )
    assert rows_of(device, [peer])[0].skipped.startswith("wrong")


def test_failures_and_lengths_that_are_too_long_are_rows(device: torch.device) -> None:
    def crash(_: Drawn) -> torch.Tensor:
        raise ValueError("no kernel\nfor this")

    def greedy(_: Drawn) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    found = rows_of(
        device,
        [
            Peer(name="crash", operator=crash, longest=32),
            Peer(name="greedy", operator=greedy, longest=100),
        ],
    )
    assert [row.skipped for row in found] == [
        "failed: ValueError: no kernel",
        "out of memory",
        "longer than 32",
        "out of memory",
    ]


def test_picture(device: torch.device, tmp_path: Path) -> None:
    rows = rows_of(device, [peer for peer in peers(device) if peer.name == CHUNK])
    plot(
        [*rows, Row(operator="absent", batch=1, length=9, heads=1, dim=8, dtype="float32")],
        "title",
        tmp_path / "x.png",
    )
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_machine_names_what_a_figure_depends_on(device: torch.device) -> None:
    assert {"device", "python", "torch", "triton", "fla-core"} <= set(machine(device))
