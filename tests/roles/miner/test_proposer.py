"""Where candidates come from."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from kernels.presets import DEFAULT, PRESETS
from kernels.tuned import keep, key_of
from node.settings_model import MinerSection
from protocol.errors import ConfigError
from protocol.forks import TARGET_FILES
from roles.miner.proposer import (
    Candidate,
    FilesProposer,
    Proposer,
    ShippedProposer,
    find_tuned,
    open_proposer,
)
from tests.roles.miner.harness import files


async def all_of(proposer: Proposer) -> list[Candidate]:
    """Everything that it has to offer now."""
    found = []
    while (candidate := await proposer.propose()) is not None:
        found.append(candidate)
    return found


async def test_shipped_kernels_come_in_the_order_named_each_once() -> None:
    found = await all_of(ShippedProposer(("chunk", "recurrent"), (DEFAULT, *PRESETS)))
    assert [candidate.name for candidate in found[:2]] == ["chunk (any)", "recurrent (any)"]
    assert len(found) > 2
    assert len({candidate.digest for candidate in found}) == len(found)
    assert all(set(TARGET_FILES) <= set(candidate.files) for candidate in found)


async def test_tuned_parameters_come_first_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = key_of("cpu", heads=8, dim=64, dtype="bfloat16", length=100_000)
    launch = replace(DEFAULT.launch, num_stages=8)
    keep(key, launch)
    proposer = ShippedProposer(("chunk",), (DEFAULT,), functools.partial(find_tuned, "cpu", 100_000))
    first, second = await all_of(proposer)
    assert (first.name, second.name) == ("chunk (tuned)", "chunk (any)")
    assert "\nNUM_STAGES = 8\n" in first.files["chunk.py"]
    keep(key, replace(launch, num_stages=2))
    (third,) = await all_of(proposer)
    assert "\nNUM_STAGES = 2\n" in third.files["chunk.py"]


async def test_tuned_parameters_that_cannot_be_read_are_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert await find_tuned("cpu", 100_000) is None
    with structlog.testing.capture_logs() as logs:
        assert await find_tuned("nonsense", 100_000) is None
    assert [entry["event"] for entry in logs] == ["tuned parameters cannot be read"]
    assert "nonsense" in logs[0]["reason"]


def test_unknown_variant_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'fastest'.*chunk"):
        ShippedProposer(("fastest",))


async def test_own_files_come_again_only_when_they_changed(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    proposer = FilesProposer(tmp_path)
    (first,) = await all_of(proposer)
    assert dict(first.files) == files()
    (tmp_path / "chunk.py").write_text("x = 2\n")
    (second,) = await all_of(proposer)
    assert second.files["chunk.py"] == "x = 2\n"
    assert second.digest != first.digest


async def test_helper_files_come_along(tmp_path: Path) -> None:
    for name, text in (files() | {"helper.py": "y = 1\n"}).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("not code")
    (candidate,) = await all_of(FilesProposer(tmp_path))
    assert set(candidate.files) == {*TARGET_FILES, "helper.py"}


async def test_folder_under_work_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    proposer = FilesProposer(tmp_path)
    (tmp_path / "gate.py").unlink()
    assert await all_of(proposer) == []
    (tmp_path / "gate.py").write_bytes(b"\xff\xfe")
    assert await all_of(proposer) == []
    (tmp_path / "gate.py").write_text("x = 3\n")
    assert len(await all_of(proposer)) == 1


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "chunk.py").write_text("")
    with pytest.raises(ConfigError, match=r"lacks fused_recurrent\.py, .*gate\.py"):
        open_proposer(MinerSection(proposer="files", kernel_dir=tmp_path), "cpu")
    with pytest.raises(ConfigError, match="nowhere"):
        open_proposer(MinerSection(proposer="files", kernel_dir=tmp_path / "nowhere"), "cpu")
    with pytest.raises(ConfigError, match="kernel_dir"):
        open_proposer(MinerSection(proposer="files"), "cpu")


def test_default_proposer_ships(tmp_path: Path) -> None:
    assert isinstance(open_proposer(MinerSection(), "cuda:0"), ShippedProposer)
