"""SIGKILL in every phase of a miner, on one journal and one history: no step is lost and none is repeated.

The phases are held open from outside: the language model and the API do not answer, git does not end.
"""

import asyncio
import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernels.export import export_files
from roles.devnet.layout import Layout, Member, Scale, prepare
from roles.devnet.processes import Processes, log_tail
from tests.acceptance.subnet import change, until_up
from tests.acceptance.test_crash import HoldingProxy
from tests.fakes.language_model import ScriptedModel, answer_with
from tests.processes import is_gone

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("sandbox")]

BLOCKS_UNTIL_REVEAL = 40
_GIT = """#!/bin/sh
# git, except that commands which a test holds do not end.
for word in "$@"; do
    if [ -e "{folder}/hold-$word" ]; then
        # Whoever sees the file finds the number in it.
        echo $$ > "{folder}/begun-$word" && mv "{folder}/begun-$word" "{folder}/held-$word"
        exec sleep 600
    fi
done
exec "{git}" "$@"
"""


class World:
    """A subnet of one API and one miner, both real processes, and what stands around them."""

    def __init__(self, layout: Layout, tools: Path, model: ScriptedModel, proxy: HoldingProxy) -> None:
        self.layout = layout
        self.miner: Member = layout.fast
        self.tools = tools
        self.model = model
        self.proxy = proxy
        self.processes = Processes()

    async def kill_when(self, condition: Callable[[], bool], what: str) -> None:
        """Start the miner, and kill it without ceremony once the condition holds."""
        await self.processes.start(self.miner)
        await self.until(condition, what)
        process = self.processes.forget(self.miner)
        os.killpg(process.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; the miner's last words when it does not come."""
        try:
            async with asyncio.timeout(200):
                while not condition():
                    self.processes.check()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{what} did not come:\n{log_tail(self.miner)}") from None

    def hold(self, word: str) -> Callable[[], bool]:
        """Have git commands with a word not end; the condition says that one has begun."""
        (self.tools / f"hold-{word}").touch()
        return lambda: (self.tools / f"held-{word}").exists()

    async def let_go(self, word: str) -> None:
        """Have such commands end again, once the one that was held has ended with its miner."""
        (self.tools / f"hold-{word}").unlink()
        held = int((self.tools / f"held-{word}").read_text())
        await self.until(lambda: is_gone(held), f"the end of git {word}")

    def has_base(self) -> bool:
        """True once the fork's work tree holds what candidates are committed on."""
        # By its name: git writes a lock beside it first.
        return bool(list(self.miner.folder.glob("data/quasar_work/*/.git/refs/heads/main")))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the miner's history says; nothing before it is there."""
        path = self.miner.folder / "data/history.sqlite"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path, timeout=10)) as database:
            try:
                return database.execute(query).fetchall()
            except sqlite3.OperationalError:
                return []

    def phases(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT phase FROM candidates ORDER BY number")]


@asynccontextmanager
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    layout = prepare(tmp_path / "devnet", scale=Scale.short(), device="cpu")
    tools = tmp_path / "tools"
    tools.mkdir()
    shim = tools / "git"
    shim.write_text(_GIT.format(folder=tools, git=shutil.which("git")))
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    model = ScriptedModel([answer_with({"chunk.py": export_files("chunk64")["chunk.py"]}, "longer chunks")])
    proxy = HoldingProxy(layout.api_url)
    async with model.serve() as base_url, proxy.serve() as api_url:
        change(layout.api, api={"blocks_until_reveal": BLOCKS_UNTIL_REVEAL, "reveal_window_blocks": 30_000})
        change(
            layout.fast,
            api={"url": api_url},
            miner={
                "proposer": "agent",
                "agent_iterations": 2,
                "optimization_interval_s": 0.0,
                "serve_inference": False,
                # Whichever of the two is faster here: one submission is enough.
                "submit_margin": 1.0,
            },
            agent={"base_url": base_url, "model": "m"},
            evaluation={"trials_min": 1, "trials_max": 1, "max_sequence_length": 64},
        )
        there = World(layout, tools, model, proxy)
        try:
            await there.processes.start(layout.api)
            await until_up(layout.api_url)
            yield there
        finally:
            await there.processes.stop()


async def test_miner_killed_in_every_phase_ends_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as there:
        there.model.hold = asyncio.Event()
        await there.kill_when(lambda: there.has_base() and there.phases() == ["proposed"], "a candidate")

        await there.kill_when(there.hold("commit"), "a commit to the fork")
        assert there.phases() == ["ready"]
        await there.let_go("commit")

        there.proxy.held = {"/commit_submission"}
        await there.kill_when(lambda: bool(there.proxy.waiting), "a commitment")
        assert there.phases() == ["offered"]
        there.proxy.held = set()

        asked = len(there.model.asked)
        await there.kill_when(lambda: len(there.model.asked) > asked, "a question to the model")
        there.model.hold = None
        await there.kill_when(lambda: there.phases() == ["offered", "proposed"], "a second candidate")

        await there.kill_when(there.hold("push"), "a push")
        await there.let_go("push")

        there.proxy.held = {"/reveal_submission"}
        await there.kill_when(lambda: "/reveal_submission" in there.proxy.waiting, "a reveal")
        there.proxy.held = set()

        await there.processes.start(there.miner)
        await there.until(lambda: there.proxy.accepted("/reveal_submission") == 1, "the accepted reveal")
        await there.until(lambda: there.phases()[:2] == ["offered", "ready"], "the second verdict")
        rows = there.rows("SELECT number, parent, status FROM candidates WHERE phase != 'refused'")
        assert rows == [(1, None, "passed"), (2, 1, "passed")]
        assert [one["state"] for one in await submissions(there.layout)] == ["queued"]


async def submissions(layout: Layout) -> list[dict[str, Any]]:
    """What the API has of the miner."""
    url = f"{layout.api_url}/submissions?hotkey={layout.fast.hotkey}&limit=10"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        response.raise_for_status()
        return list(await response.json())
