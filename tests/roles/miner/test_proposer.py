"""Where candidates come from: the shipped kernels, a folder, and a search."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from kernels.export import export_files
from kernels.presets import DEFAULT, PRESETS
from node.clock import SystemClock
from node.workers import WorkerProcess
from protocol.errors import ConfigError
from protocol.forks import TARGET_FILES
from roles.miner.candidate import Candidate, Proposer
from roles.miner.proposer import FilesProposer, ShippedProposer
from roles.miner.target import Target
from roles.miner.tuner_proposer import DATABASE, TunerProposer
from tests.roles.miner.harness import files

CLOCK = SystemClock()


async def all_of(proposer: Proposer) -> list[Candidate]:
    """Everything that it has to offer now."""
    found = []
    while (candidate := await proposer.propose()) is not None:
        assert isinstance(candidate, Candidate)
        found.append(candidate)
    return found


async def test_shipped_kernels_come_in_the_order_named_each_once() -> None:
    found = await all_of(ShippedProposer(("chunk", "recurrent"), CLOCK, (DEFAULT, *PRESETS)))
    assert [candidate.name for candidate in found[:2]] == ["chunk (any)", "recurrent (any)"]
    assert len(found) > 2
    assert len({candidate.digest for candidate in found}) == len(found)
    assert all(set(TARGET_FILES) <= set(candidate.files) for candidate in found)


def test_unknown_variant_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'fastest'.*chunk"):
        ShippedProposer(("fastest",), CLOCK)
    with pytest.raises(ConfigError, match=r"variants is empty"):
        ShippedProposer((), CLOCK)


async def test_own_files_come_again_only_when_they_changed(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    proposer = FilesProposer(tmp_path, CLOCK)
    (first,) = await all_of(proposer)
    assert dict(first.files) == files()
    (tmp_path / "chunk.py").write_text("x = 2\n")
    (second,) = await all_of(proposer)
    assert second.files["chunk.py"] == "x = 2\n"
    assert second.digest != first.digest


async def test_change_in_the_folder_ends_the_rest(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    proposer = FilesProposer(tmp_path, CLOCK)
    await all_of(proposer)
    resting = asyncio.create_task(proposer.rest(600.0))
    await asyncio.sleep(0.1)
    assert not resting.done()
    (tmp_path / "chunk.py").write_text("x = 22\n")
    async with asyncio.timeout(30):
        await resting
    assert len(await all_of(proposer)) == 1
    started = time.monotonic()
    await proposer.rest(0.2)
    assert time.monotonic() - started >= 0.2


async def test_helper_files_come_along(tmp_path: Path) -> None:
    for name, text in (files() | {"helper.py": "y = 1\n"}).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("not code")
    (candidate,) = await all_of(FilesProposer(tmp_path, CLOCK))
    assert set(candidate.files) == {*TARGET_FILES, "helper.py"}


async def test_folder_under_work_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    proposer = FilesProposer(tmp_path, CLOCK)
    (tmp_path / "gate.py").unlink()
    assert await all_of(proposer) == []
    (tmp_path / "gate.py").write_bytes(b"\xff\xfe")
    assert await all_of(proposer) == []
    (tmp_path / "gate.py").write_text("x = 3\n")
    assert len(await all_of(proposer)) == 1


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "chunk.py").write_text("")
    with pytest.raises(ConfigError, match=r"lacks fused_recurrent\.py, .*gate\.py"):
        FilesProposer(tmp_path, CLOCK)
    with pytest.raises(ConfigError, match="nowhere"):
        FilesProposer(tmp_path / "nowhere", CLOCK)


def tuner(data_dir: Path, budget_s: float) -> TunerProposer:
    """A search on the CPU, for very short sequences."""
    return TunerProposer(
        Target(100_000),
        CLOCK,
        device="cpu",
        data_dir=data_dir,
        budget_s=budget_s,
        run_length=lambda _target: 32,
    )


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and locks of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.usefixtures("alone")
async def test_search_proposes_its_best_once_and_goes_on_where_it_was(tmp_path: Path) -> None:
    first = await tuner(tmp_path, 2.0).propose()
    assert first is not None
    assert set(TARGET_FILES) <= set(first.files)
    assert first.proposer == "tuner"
    trials = int(first.note.split()[2])
    assert trials >= 1
    assert (tmp_path / DATABASE).is_file()
    # In so little time a search that began anew would not come as far.
    again = await tuner(tmp_path, 0.05).propose()
    assert again is not None
    assert int(again.note.split()[2]) > trials


async def test_best_that_stays_the_best_is_proposed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = {"chunk_size": 16, "block_v": 32, "num_warps": 4, "num_stages": 2, "programs": 4}
    found = {"configuration": {"schedule": "chunk"} | launch, "milliseconds": 2.5, "trials": 7}

    async def call(self: WorkerProcess, method: str, params: dict[str, Any], timeout_s: float) -> Any:
        assert (method, params["length"]) == ("tune", 32)
        return found

    monkeypatch.setattr(WorkerProcess, "call", call)
    proposer = tuner(tmp_path, 1.0)
    candidate = await proposer.propose()
    assert candidate is not None
    assert candidate.name == "chunk chunk_size=16 block_v=32 num_warps=4 num_stages=2 programs=4"
    assert "\nBLOCK_V = 32\n" in candidate.files["chunk.py"]
    assert await proposer.propose() is None
    found["configuration"] = {"schedule": "recurrent"}
    plain = await proposer.propose()
    assert plain is not None
    assert plain.files == export_files("recurrent")
    found["configuration"] = None
    assert await proposer.propose() is None


@pytest.mark.usefixtures("alone")
async def test_search_that_fails_is_told_and_proposes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache/quasar-node").mkdir(parents=True)
    (tmp_path / "cache/quasar-node/tuned.json").write_text("[]")
    assert await tuner(tmp_path, 1.0).propose() is None
