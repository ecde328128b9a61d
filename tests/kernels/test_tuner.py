"""Tuning: wrong parameters never win, a study goes on where it was, and the kernels use what it found."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kernels import chunk, tuned, tuner
from kernels.benchmark import Benchmark
from kernels.harness.inputs import Shape
from kernels.launch import Launch
from kernels.presets import DEFAULT
from kernels.tuned import keep, key_of, tuned_file, tuned_for_entry, tuned_launch
from kernels.tuner import Tuner
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


def make(tmp_path: Path, device: torch.device) -> tuple[Tuner, list[tuple[Launch, float | None, str]]]:
    told: list[tuple[Launch, float | None, str]] = []
    benchmark = Benchmark(device, repetitions=2)

    def on_trial(*outcome: object) -> None:
        told.append(outcome)  # type: ignore[arg-type]

    return Tuner(SHAPE, benchmark, database=tmp_path / "tune.sqlite", on_trial=on_trial), told


def test_study_is_resumed_and_its_best_is_kept(tmp_path: Path, device: torch.device) -> None:
    first, told = make(tmp_path, device)
    first.run(2)
    assert len(told) == 2
    second, told = make(tmp_path, device)
    assert second.done == 2
    found = second.run(4)
    assert len(told) == 2
    assert found is not None
    launch, milliseconds = found
    entry = json.loads(tuned_file().read_text())[second.key]
    assert {name: entry[name] for name in asdict(launch)} == asdict(launch)
    assert entry["milliseconds"] == milliseconds
    assert entry["trials"] == 4
    assert second.run(4) == found


def test_wrong_and_failing_parameters_never_win(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tuner.launch_chunk_quasar

    def spoilt(launch: Launch, *tensors: torch.Tensor) -> tuple[torch.Tensor, None]:
        if launch.num_stages == 3:
            raise RuntimeError("out of resource: shared memory")
        return 1.001 * honest(launch, *tensors)[0], None

    monkeypatch.setattr(tuner, "launch_chunk_quasar", spoilt)
    study, told = make(tmp_path, device)
    assert study.run(4) is None
    assert all(milliseconds is None for _, milliseconds, _ in told)
    reasons = " ".join(reason for _, _, reason in told)
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
