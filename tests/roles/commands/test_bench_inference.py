"""`quasar-node bench --inference` as a whole on a CPU, and what it calls a problem."""

import json
from pathlib import Path
from typing import Any

import pytest

from node.device_turns import BackgroundTurn
from protocol.errors import DeviceBusy
from roles.cli import main
from roles.commands import bench_inference
from roles.commands.bench_inference import find_problems

RIGHT: dict[str, Any] = {
    "model": "seeded",
    "decode": {"largest_gap_to_the_best": 0.0, "same_answer_twice": True},
    "exact_in_float32": {"identical_tokens": True},
    "concurrency": {"errors": 0},
    "soak": {"unexpected_statuses": []},
    "challenges": {"outcomes": ["passed", "passed"], "reasons": ["agree"]},
}


def test_every_part_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")
    assert main(["bench", "--inference", "--requests", "60", "--json"]) == 0
    output, progress = capfd.readouterr()
    parts = json.loads(output)
    assert parts["problems"] == []
    assert parts["decode"]["identical_tokens"] is True
    assert parts["decode"]["ratio_to_plain_loop"] > 0
    assert parts["concurrency"]["answered_out_of_order"] == 0
    assert set(parts["challenges"]["outcomes"]) == {"passed"}
    assert parts["margins"]["int4"]["times_rounding_smallest"] > 10.0
    assert parts["hand_over"].keys() == {"fetched_ms", "written_ms"}
    assert parts["http_overhead"].keys() == {"without_logits", "base64", "list"}
    assert '{"soak": ' in progress


def test_the_server_has_the_device_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes turns for its answers, and would wait for the bench at each of them."""
    free: dict[str, bool] = {}

    def look(part: str) -> None:
        try:
            with BackgroundTurn("cpu", timeout_s=0.0):
                free[part] = True
        except DeviceBusy:
            free[part] = False

    async def engine(*_: Any) -> None:
        look("engine")

    async def server(*_: Any) -> None:
        look("server")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(bench_inference, "check_model_path", str)
    monkeypatch.setattr(bench_inference, "_engine", engine)
    monkeypatch.setattr(bench_inference, "_server", server)
    assert main(["bench", "--inference", "--model", "some/model", "--json"]) == 0
    assert free == {"engine": False, "server": True}


@pytest.mark.parametrize(
    ("part", "change", "problem"),
    [
        ("decode", {"error": "RuntimeError: no GPU"}, "decode: RuntimeError: no GPU"),
        ("decode", {"largest_gap_to_the_best": 0.2}, "decode: a token is not the plain model's choice"),
        ("decode", {"same_answer_twice": False}, "decode: the same request was answered in two ways"),
        ("exact_in_float32", {"identical_tokens": False}, "exact_in_float32: other tokens than"),
        ("concurrency", {"errors": 3}, "concurrency: 3 requests were not answered"),
        ("soak", {"unexpected_statuses": [500]}, "soak: answered [500]"),
        ("challenges", {"outcomes": ["passed", "pending"]}, "challenges: ['agree']"),
    ],
)
def test_what_is_wrong_is_a_problem(part: str, change: dict[str, Any], problem: str) -> None:
    assert find_problems(RIGHT) == []
    found = find_problems(RIGHT | {part: RIGHT[part] | change})
    assert len(found) == 1
    assert found[0].startswith(problem)
