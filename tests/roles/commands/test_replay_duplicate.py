"""`quasar-node verify --replay` of a `duplicate`: a real API, real repositories, the real referee."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from kernels.export import export_files
from node.git_work_tree import Author, GitWorkTree
from protocol.forks import TARGET_DIR
from protocol.messages import SubmitKernel
from protocol.signing import signed
from protocol.verdicts import Status
from roles.cli import main
from tests.roles.api.harness import Client, Key, Subnet
from tests.roles.running_subnet import (
    api,
    api_settings,
    chain_settings,
    front_kind,
    migrated,
    private_caches,
    subnet,
)

__all__ = [
    "api",
    "api_settings",
    "chain_settings",
    "front_kind",
    "migrated",
    "private_caches",
    "subnet",
]

LOCAL = (
    "chain.network=local",
    "evaluation.trials_min=1",
    "evaluation.trials_max=1",
    "evaluation.max_sequence_length=64",
)


@pytest.fixture(autouse=True)
def on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")


def repository(path: Path, *, ending: str = "") -> tuple[str, str]:
    """A fork with the shipped kernel: its URL and commit. `ending`: of one file, so that it is another."""
    tree = GitWorkTree(path)
    tree.ensure()
    (path / TARGET_DIR).mkdir(parents=True)
    for name, text in export_files("chunk").items():
        (path / TARGET_DIR / name).write_text(text + (ending if name == "chunk.py" else ""))
    commit = tree.commit_all("Kernels", Author(name="miner", email="miner@localhost"))
    return path.as_uri(), commit


class Copies:
    """Has submissions judged by hand, and judges the last one again."""

    def __init__(self, api: Client, subnet: Subnet, folder: Path) -> None:
        self.api = api
        self.subnet = subnet
        self.folder = folder

    async def judged(
        self, miner: Key, code: tuple[str, str], status: Status = Status.PASSED, **evidence: object
    ) -> int:
        """Submit code and hand in a verdict on it; its number."""
        fork_url, commit_hash = code
        message = signed(
            miner,
            SubmitKernel,
            fork_url=fork_url,
            commit_hash=commit_hash,
            target_sequence_length=100_000,
            tokens_per_sec=1.0,
        )
        reply = await self.api.post("/submit_kernel", message)
        assert reply.status == 200, reply
        lease = await self.api.lease(self.subnet.validator)
        assert lease is not None
        reply = await self.api.judge(
            self.subnet.validator, lease, status=status, evidence={"seeds": [], **evidence}
        )
        assert reply.status == 200, reply
        return lease.submission_id

    async def copied(self, miner: Key, code: tuple[str, str], earlier: object) -> int:
        """A submission with the verdict that it is a copy."""
        return await self.judged(miner, code, Status.DUPLICATE, duplicate_of=earlier)

    async def replay(self, number: int, *more: str, url: str | None = None) -> int:
        """The exit status."""
        detail = (await self.api.get(f"/submissions/{number}")).body
        (self.folder / "submission.json").write_text(json.dumps(detail))
        given = [word for pair in (*LOCAL, f"api.url={url or self.api.url}") for word in ("--set", pair)]
        return await asyncio.to_thread(main, ["verify", "--replay", "submission.json", *given, *more])


@pytest.fixture
def copies(api: Client, subnet: Subnet, tmp_path: Path) -> Copies:
    return Copies(api, subnet, tmp_path)


async def test_a_copy_is_compared_with_what_was_judged_before(
    copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = await copies.judged(copies.subnet.miner, repository(tmp_path / "fork"))
    # The same program, and not the same bytes.
    code = repository(tmp_path / "copy", ending="\n\n# mine\n")
    second = await copies.copied(copies.subnet.rival, code, first)
    assert await copies.replay(second, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["replayed"]["figures"]["status"] == "duplicate"
    assert f"Compared with the files of submission {first}, which the verdict names." in said.err


@pytest.mark.usefixtures("sandbox")
async def test_a_copy_of_something_else_is_a_contradiction(
    copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = repository(tmp_path / "fork", ending="\n\nOTHER = 1\n")
    first = await copies.judged(copies.subnet.miner, code)
    second = await copies.copied(copies.subnet.rival, repository(tmp_path / "copy"), first)
    assert await copies.replay(second) == 1
    assert f"Compared with the files of submission {first}" in capsys.readouterr().err


@pytest.mark.usefixtures("sandbox")
async def test_nobody_copies_from_himself(
    copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = repository(tmp_path / "fork")
    first = await copies.judged(copies.subnet.miner, code)
    again = repository(tmp_path / "again", ending="\n\n# again\n")
    second = await copies.copied(copies.subnet.miner, again, first)
    assert await copies.replay(second) == 1
    assert "cannot be the original: it is the miner's own" in capsys.readouterr().err


async def test_what_was_judged_before_and_cannot_be_had_decides_nothing(
    copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = await copies.judged(copies.subnet.miner, repository(tmp_path / "fork"))
    shutil.rmtree(tmp_path / "fork")
    second = await copies.copied(copies.subnet.rival, repository(tmp_path / "copy"), first)
    assert await copies.replay(second) == 69
    said = capsys.readouterr().err
    assert f"`duplicate` rests on submission {first}, and without its files nothing can be concluded" in said


@pytest.mark.parametrize(
    ("earlier", "words"),
    [
        ("of old", "does not say which"),
        (True, "does not say which"),
        (0, "does not say which"),
        (77, "there is no submission 77"),
    ],
)
async def test_a_copy_of_nothing_that_is_known_decides_nothing(
    earlier: object, words: str, copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = await copies.copied(copies.subnet.rival, repository(tmp_path / "copy"), earlier)
    assert await copies.replay(number) == 69
    said = capsys.readouterr().err
    assert "nothing can be concluded" in said
    assert words in said


async def test_an_api_that_is_away_decides_nothing(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("roles.commands.replay_duplicate.CALL_S", 0.5)
    number = await copies.copied(copies.subnet.rival, repository(tmp_path / "copy"), 1)
    assert await copies.replay(number, url="http://127.0.0.1:9") == 69
    assert "nothing can be concluded" in capsys.readouterr().err
