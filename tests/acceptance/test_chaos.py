"""Five minutes of SIGKILL at random: every acknowledged commitment is revealed, and once.

Run alone: `pytest -m chaos`. QUASAR_CHAOS_SEED repeats a run, QUASAR_CHAOS_S shortens it.
"""

import asyncio
import itertools
import os
import random
import signal
import sqlite3
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from roles.devnet.layout import Layout, Member, Scale, prepare
from roles.devnet.processes import Processes, log_tail
from tests.acceptance.subnet import change
from tests.fakes.subtensor.process import NodeProcess
from tests.roles.proxy import SwitchedProxy

SEED = int(os.environ.get("QUASAR_CHAOS_SEED", "20261125"))
CHAOS_S = float(os.environ.get("QUASAR_CHAOS_S", "300"))
SETTLING_S = 240.0
NEW_CODE_EVERY_S = 4.0
MAY_RESTART = (0, 69, 75, -signal.SIGKILL)
"""Exit codes after which systemd would start the process again; any other end is a defect."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(CHAOS_S + SETTLING_S + 120)]


class Chaos:
    """Kills and restarts the miner, the API and the chain's node, and restarts what ends by itself."""

    def __init__(self, layout: Layout, node: NodeProcess, draw: random.Random) -> None:
        self.layout = layout
        self.node = node
        self.draw = draw
        self.processes = Processes()
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.kills: Counter[str] = Counter()
        # One submission waits for a verdict in each league, and nobody judges here.
        self.targets = itertools.cycle(range(100_000, 1_000_001, 100_000))

    @property
    def members(self) -> dict[str, Member]:
        return {"api": self.layout.api, "miner": self.layout.wrong}

    async def start(self, name: str) -> None:
        if name == "node":
            await self.node.start()
            return
        member = self.members[name]
        if name == "miner":
            change(member, miner={"target_sequence_length": next(self.targets)})
        self.running[name] = await self.processes.start(member)
        self.processes.forget(member)

    async def kill(self, name: str) -> None:
        self.kills[name] += 1
        if name == "node":
            await self.node.kill()
            return
        process = self.running.pop(name)
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def revive(self) -> None:
        """Do as a supervisor does with what has ended."""
        for name, process in list(self.running.items()):
            if process.returncode is not None:
                assert process.returncode in MAY_RESTART, log_tail(self.members[name])
                await self.start(name)

    async def rage(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            await asyncio.sleep(self.draw.uniform(2.0, 9.0))
            await self.revive()
            name = self.draw.choice(["miner", "api", "node"])
            await self.kill(name)
            await asyncio.sleep(self.draw.choice([0.0, 0.5, 3.0]))
            await self.start(name)

    async def stop(self) -> None:
        for name in list(self.running):
            await self.kill(name)
        await self.node.kill()


def reconfigure(layout: Layout, node: NodeProcess, proxy_url: str) -> None:
    """The chain behind a websocket, the API behind the proxy, and commitments one after another."""
    for member in (layout.api, layout.wrong):
        config = tomllib.loads(member.config_file.read_text())
        del config["chain"]["local_state"]
        config["chain"] |= {"local_endpoint": node.url, "call_timeout_s": 10.0}
        if member is layout.api:
            # No more than four submissions of a round count, so the miner makes no more.
            config["api"]["round_s"] = 15.0
        if member is layout.wrong:
            config["api"]["url"] = proxy_url
            config["miner"] |= {
                "serve_inference": False,
                "agent_iterations": 100_000,
                "optimization_interval_s": 1.0,
            }
            config["evaluation"] |= {"trials_min": 1, "trials_max": 1}
        member.config_file.write_text(tomli_w.dumps(config))


async def write_new_code(folder: Path) -> None:
    """The operator's own kernels, changed again and again: each change becomes a commitment."""
    original = (folder / "gate.py").read_text()
    for number in range(1_000_000):
        draft = folder / "gate.new"
        draft.write_text(f"{original}\n# version {number}\n")
        draft.replace(folder / "gate.py")
        await asyncio.sleep(NEW_CODE_EVERY_S)


def rows(database: Path) -> list[dict[str, Any]]:
    """Every submission that the API has, as it lies on disk."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT id, commitment_hash, reveal_block, revealed_at FROM submissions")
        return [dict(row) for row in found]


def unfinished(journal: Path) -> int:
    """Submissions that the miner still has to carry on."""
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as connection:
        states = connection.execute("SELECT state FROM records WHERE kind = 'submission'").fetchall()
    return sum(state in ("drafted", "committed", "pushed") for (state,) in states)


async def test_every_acknowledged_commitment_is_revealed_exactly_once(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "devnet", scale=Scale.short(), device="cpu")
    node = NodeProcess(layout.chain_file)
    chaos = Chaos(layout, node, random.Random(SEED))
    database = layout.api.folder / "data" / "api.sqlite"
    journal = layout.wrong.folder / "data" / "miner.sqlite"
    async with SwitchedProxy.serve(layout.api_url) as proxy:
        reconfigure(layout, node, proxy.url)
        for name in ("node", "api", "miner"):
            await chaos.start(name)
        writing = asyncio.create_task(write_new_code(layout.wrong.folder / "candidate"))
        try:
            await chaos.rage(time.monotonic() + CHAOS_S)
            writing.cancel()
            async with asyncio.timeout(SETTLING_S):
                while not database.exists() or not journal.exists() or not rows(database):
                    await chaos.revive()
                    await asyncio.sleep(0.5)
                while unfinished(journal) or any(row["revealed_at"] is None for row in rows(database)):
                    await chaos.revive()
                    await asyncio.sleep(0.5)
        finally:
            writing.cancel()
            await chaos.stop()
    found = {row["id"]: row for row in rows(database)}
    committed = Counter(answer["submission_id"] for answer in proxy.answers("/commit_submission"))
    revealed = Counter(answer["submission_id"] for answer in proxy.answers("/reveal_submission"))
    print(f"seed {SEED}: kills {dict(chaos.kills)}, {len(found)} commitments, {len(committed)} acknowledged")
    assert min(chaos.kills[name] for name in ("miner", "api", "node")) >= CHAOS_S / 60
    assert len(committed) >= CHAOS_S / 60
    assert set(committed) <= set(found), "an acknowledged commitment is gone"
    assert all(row["revealed_at"] for row in found.values()), "a commitment was not revealed"
    assert len({row["commitment_hash"] for row in found.values()}) == len(found)
    assert max(revealed.values(), default=0) == 1, "a reveal was taken twice"
    assert set(revealed) <= set(found)
