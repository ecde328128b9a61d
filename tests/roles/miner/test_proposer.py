"""Where candidates come from."""

from pathlib import Path

import pytest

from kernels.presets import DEFAULT, PRESETS
from node.settings_model import MinerSection
from protocol.errors import ConfigError
from protocol.forks import TARGET_FILES
from roles.miner.proposer import Candidate, FilesProposer, Proposer, ShippedProposer, open_proposer
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
        open_proposer(MinerSection(proposer="files", kernel_dir=tmp_path))
    with pytest.raises(ConfigError, match="nowhere"):
        open_proposer(MinerSection(proposer="files", kernel_dir=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="kernel_dir"):
        open_proposer(MinerSection(proposer="files"))


def test_default_proposer_ships(tmp_path: Path) -> None:
    assert isinstance(open_proposer(MinerSection()), ShippedProposer)
