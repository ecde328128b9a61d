"""Tuning: wrong parameters never win, a study goes on where it was, and the kernels use what it found."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from kernels import chunk, tuned, tuner
from kernels.benchmark import Benchmark
from kernels.harness.inputs import Shape
from kernels.launch import Launch
from kernels.presets import DEFAULT
from kernels.tuned import keep, key_of, tuned_file, tuned_for_entry, tuned_launch
from kernels.tuner import CHOICES, CHUNK, RECURRENT, Choice, Outcome, Tuner
from protocol.errors import ConfigError
from tests.kernels.conftest import Draw

SHAPE = Shape(batch=1, length=48, heads=1, dim=16, dtype="float32")
LAUNCH = Launch(chunk_size=16, block_v=16, num_warps=4, num_stages=2, programs=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuned.forget()
    yield tmp_path / "cache"
    tuned.forget()


def make(tmp_path: Path, device: torch.device, **options: Any) -> tuple[Tuner, list[Outcome]]:
    told: list[Outcome] = []
    benchmark = Benchmark(device, repetitions=2)
    database = tmp_path / "tune.sqlite"
    return Tuner(SHAPE, benchmark, database=database, on_trial=told.append, **options), told


def test_study_is_resumed_and_its_best_is_kept(tmp_path: Path, device: torch.device) -> None:
    first, told = make(tmp_path, device)
    first.run(2)
    assert len(told) == 2
    second, told = make(tmp_path, device)
    assert second.done == 2
    found = second.run(4)
    assert len(told) == 2
    assert found is not None
    entry = json.loads(tuned_file().read_text())[second.key]
    assert set(asdict(LAUNCH)) <= set(entry)
    assert entry["milliseconds"] >= found.milliseconds
    assert entry["trials"] == 4
    assert second.run(4) == found


def test_nothing_is_tried_twice_until_everything_was(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dict.fromkeys(CHOICES, (1,)) | {"chunk_size": (16, 32), "block_v": (16,), "num_warps": (2, 4)}
    monkeypatch.setattr(tuner, "CHOICES", few)
    asked: list[None] = []
    study, told = make(tmp_path, device, start="baseline", between=lambda: asked.append(None))
    study.run()
    tried = [outcome.choice for outcome in told]
    assert tried[0] == Choice(RECURRENT)
    assert sorted(map(str, tried[1:])) == sorted(
        str(Choice(CHUNK, Launch(size, 16, warps, 1, 1))) for size in (16, 32) for warps in (2, 4)
    )
    assert study.done == 5
    assert len(asked) == 6


def test_search_ends_with_its_time(tmp_path: Path, device: torch.device) -> None:
    study, told = make(tmp_path, device)
    assert study.run(budget_s=1e-9) is None
    assert told == []


def test_trial_that_a_kill_cut_off_comes_first(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(launch: Launch, *tensors: torch.Tensor) -> NoReturn:
        cut_off.append(Choice(CHUNK, launch))
        raise Killed

    cut_off: list[Choice] = []
    with monkeypatch.context() as patch:
        patch.setattr(tuner, "launch_chunk_quasar", killed)
        study, told = make(tmp_path, device)
        with pytest.raises(Killed):
            study.run(1)
    assert told == []
    again, told = make(tmp_path, device)
    again.run(3)
    assert cut_off[0] in [outcome.choice for outcome in told]
    assert len({outcome.choice for outcome in told}) == 3


def test_finalists_are_timed_side_by_side_and_wrong_ones_left_out(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = make(tmp_path, device)
    right, wrong = Choice(CHUNK, LAUNCH), Choice(CHUNK, replace(LAUNCH, num_warps=8))
    honest = tuner.launch_chunk_quasar

    def spoilt(launch: Launch, *tensors: torch.Tensor) -> tuple[torch.Tensor, None]:
        factor = 1.001 if launch.num_warps == 8 else 1.0
        return factor * honest(launch, *tensors)[0], None

    monkeypatch.setattr(tuner, "launch_chunk_quasar", spoilt)
    timed = study.side_by_side([right, wrong, Choice(RECURRENT), right])
    assert set(timed) == {right, Choice(RECURRENT)}
    assert all(milliseconds > 0 for milliseconds in timed.values())


def test_wrong_and_failing_parameters_never_win(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tuner.launch_chunk_quasar

    def spoilt(launch: Launch, *tensors: torch.Tensor) -> tuple[torch.Tensor, None]:
        if launch.num_stages == 3:
            raise RuntimeError("out of resource: shared memory")
        return 1.001 * honest(launch, *tensors)[0], None

    monkeypatch.setattr(tuner, "launch_chunk_quasar", spoilt)
    monkeypatch.setattr(tuner, "fused_recurrent_quasar", lambda *tensors: (torch.zeros(()), None))
    study, told = make(tmp_path, device)
    assert study.run(4) is None
    assert all(outcome.milliseconds is None for outcome in told)
    reasons = " ".join(outcome.reason for outcome in told)
    assert "wrong: relative error" in reasons
    assert "does not run: RuntimeError" in reasons
    assert not tuned_file().exists()


def test_kernels_use_what_was_found_for_their_shape(
    draw: Draw, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(length=40, heads=1, dim=16)
    used: list[Launch] = []
    blocks = chunk.blocks

    def spy(dim: int, element_size: int, launch: Launch) -> tuple[int, int, int]:
        used.append(launch)
        return blocks(dim, element_size, launch)

    monkeypatch.setattr(chunk, "blocks", spy)
    chunk.plan_for.cache_clear()
    chunk.chunk_quasar(**inputs)
    assert set(used) == {DEFAULT.launch}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    keep(key_of(name, heads=1, dim=16, dtype="float32", length=64), LAUNCH)
    used.clear()
    chunk.chunk_quasar(**inputs)
    assert set(used) == {LAUNCH}
    assert tuned_launch(draw(length=40, heads=2, dim=16)["q"], 40) is None
    assert tuned_launch(inputs["q"], 65) is None
    assert tuned_for_entry(device, 100_000) is None
    keep(key_of(name, heads=8, dim=64, dtype="bfloat16", length=100_000), LAUNCH)
    assert tuned_for_entry(device, 100_000) == LAUNCH


def test_results_stand_side_by_side(cache: Path) -> None:
    keep("one", LAUNCH, milliseconds=1.0)
    keep("two", LAUNCH)
    assert set(json.loads(tuned_file().read_text())) == {"one", "two"}
    assert [path.name for path in (cache / "quasar-node").iterdir()] == ["tuned.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"one": {"chunk_size": "many"}}', '{"one": 3}'])
def test_file_that_cannot_be_read_is_said_so_and_not_used(
    text: str, draw: Draw, device: torch.device, tmp_path: Path
) -> None:
    tuned_file().parent.mkdir(parents=True)
    tuned_file().write_text(text)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert tuned_launch(draw(length=5)["q"], 5) is None
    # A search whose result could not be kept does not begin.
    with pytest.raises(ConfigError, match=r"tuned\.json cannot be read"):
        make(tmp_path, device)
    with pytest.raises(ConfigError, match=r"tuned\.json cannot be read"):
        keep("one", LAUNCH)
    assert tuned_file().read_text() == text


def test_lengths_count_by_powers_of_two() -> None:
    keys = {key_of("gpu", heads=8, dim=64, dtype="bfloat16", length=length) for length in (65, 100, 128)}
    assert len(keys) == 1
    assert key_of("gpu", heads=8, dim=64, dtype="bfloat16", length=129) not in keys
