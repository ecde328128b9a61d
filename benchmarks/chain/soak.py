"""Miners on a fast chain that fails at random: are reveals on time, once, and is nothing growing?

`python -m benchmarks.chain.soak --blocks 10000` prints JSON. The chain is a subtensor node in a process of
its own, so is the API; the miners (their watchers, coordinators and journals, 16 commitments in flight each)
run in this one. Only git is left out: code counts as pushed at once.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import bittensor as bt
import tomli_w

from benchmarks.chain.disk import watched_disk
from benchmarks.chain.faults import FaultMaker
from benchmarks.chain.miner import SoakMiner
from benchmarks.chain.report import Samples, describe, describe_waiting
from node.chain.local import LocalChain, Registration
from node.ports import free_port
from node.settings_model import ApiSection, ChainSection, NodeSection, Settings
from node.wallets import create_wallet
from protocol.types import Coldkey, Hotkey
from roles.devnet.layout import Member
from roles.devnet.processes import Processes, log_tail
from tests.fakes.subtensor.process import NodeProcess

NETUID = 24
WAITING_MINERS = 4
"""Together they have 64 commitments in flight."""
NEURONS = 256
IN_FLIGHT = 16
"""Commitments of one hotkey that the API holds open at a time."""
SETTLING_S = 150.0
"""Above the minute after which a refused commitment is sent again."""


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.chain.soak", description=__doc__)
    parser.add_argument("--blocks", type=int, default=10_000, help="length of the run")
    parser.add_argument("--block-time", type=float, default=0.05, help="seconds")
    parser.add_argument("--blocks-until-reveal", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20_261_125)
    parser.add_argument("--no-faults", action="store_true", help="a chain and an API that behave")
    parser.add_argument(
        "--waiting", action="store_true", help="measure commitments that wait, with no reveal due"
    )
    parser.add_argument("--miners", type=int, help="1, with --waiting 4")
    options = parser.parse_args(argv)
    options.miners = options.miners or (WAITING_MINERS if options.waiting else 1)
    if options.waiting:
        options.blocks_until_reveal = 10 * options.blocks + 1_000_000
    return options


async def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the chain, the API and the miners, and judge what happened."""
    keys = [create_wallet(folder / "wallets", name).hotkey for name in ("api", *miner_names(options.miners))]
    chain = found_chain(folder / "chain.sqlite", keys[1:], options.block_time)
    node = NodeProcess(chain.path)
    await node.start()
    async with AsyncExitStack() as opened:
        opened.push_async_callback(node.kill)
        api = await opened.enter_async_context(running_api(folder, node, options))
        miners = []
        for name, key in zip(miner_names(options.miners), keys[1:], strict=True):
            settings = miner_settings(folder / name, api.url, node.url)
            miners.append(SoakMiner(settings, key, chain, in_flight=IN_FLIGHT))
            await opened.enter_async_context(miners[-1].running())
        await asyncio.gather(*(miner.first_block.wait() for miner in miners))
        if options.waiting:
            return await measure_waiting(options, miners, chain)
        samples = Samples(api_pid=lambda: api.pid)
        faults = FaultMaker(node, api, random.Random(options.seed))
        cpu_s, began_s = time.process_time(), time.monotonic()
        measured_s = options.blocks * options.block_time
        with watched_disk(folder) as disk_s:
            await drive(samples, None if options.no_faults else faults, until_s=began_s + measured_s)
        spent_s = time.process_time() - cpu_s
        await settle(miners)
        return await describe(
            options,
            miners,
            faults,
            samples,
            cpu_share=spent_s / measured_s,
            database=folder / "api" / "data" / "api.sqlite",
            disk_s=disk_s,
        )


async def measure_waiting(
    options: argparse.Namespace, miners: list[SoakMiner], chain: LocalChain
) -> dict[str, Any]:
    """What commitments cost that only wait, and how soon a block is seen while nothing fails."""
    async with asyncio.timeout(SETTLING_S):
        await asyncio.gather(*(miner.until_unfinished(IN_FLIGHT) for miner in miners))
    for miner in miners:
        miner.is_offering = False
        miner.blocks.clear()
    measured_s = options.blocks * options.block_time
    cpu_s = time.process_time()
    await asyncio.sleep(measured_s)
    share = (time.process_time() - cpu_s) / measured_s
    return describe_waiting(options, miners, chain.state().parameters, cpu_share=share)


async def drive(samples: Samples, faults: FaultMaker | None, *, until_s: float) -> None:
    """Make faults and take samples until the end."""
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + until_s - time.monotonic() + 60):
        sampling = asyncio.create_task(samples.take_until(until_s))
        if faults is not None:
            await faults.run(until_s)
        await sampling


async def settle(miners: list[SoakMiner]) -> None:
    """No new commitments: wait until those in flight are revealed."""
    for miner in miners:
        miner.is_offering = False
    async with asyncio.timeout(SETTLING_S):
        await asyncio.gather(*(miner.until_unfinished(0) for miner in miners))


def miner_names(count: int) -> list[str]:
    """Wallets of the miners."""
    return [f"miner{number}" for number in range(count)]


def found_chain(path: Path, keys: list[Any], block_time_s: float) -> LocalChain:
    """A full subnet: the miners, and strangers on every other UID."""
    cold = bt.sp_core.Keypair.create_from_uri("//soak-cold").ss58_address
    others = [bt.sp_core.Keypair.create_from_uri(f"//soak{number}") for number in range(NEURONS - len(keys))]
    neurons = [
        Registration(Hotkey(str(key.ss58_address)), Coldkey(str(cold)), 0.0) for key in [*keys, *others]
    ]
    return LocalChain.create(
        path, block_time_s=block_time_s, netuid=NETUID, owner_hotkey=None, neurons=neurons
    )


def miner_settings(data_dir: Path, api_url: str, node_url: str) -> Settings:
    """Settings of one miner, as far as its coordinator and its chain read them."""
    data_dir.mkdir(exist_ok=True)
    return Settings(
        node=NodeSection(data_dir=data_dir, device="cpu"),
        chain=ChainSection(network="local", local_endpoint=node_url, netuid=NETUID, call_timeout_s=10.0),
        api=ApiSection(url=api_url),
    )


class ApiProcess:
    """`quasar-node --role api`, which can be killed and started again."""

    def __init__(self, member: Member, url: str) -> None:
        self.url = url
        self._member = member
        self._processes = Processes()
        self._running: Any = None

    @property
    def pid(self) -> int:
        """Process id of the API that runs now."""
        return int(self._running.pid)

    async def start(self) -> None:
        """Start it; it may take a moment until it answers."""
        self._running = await self._processes.start(self._member)
        self._processes.forget(self._member)

    async def kill(self) -> None:
        """SIGKILL. Raises RuntimeError when it had ended by itself."""
        if self._running.returncode is not None:
            raise RuntimeError(f"the API ended by itself: {log_tail(self._member)}")
        self._running.kill()
        await self._running.wait()


@asynccontextmanager
async def running_api(
    folder: Path, node: NodeProcess, options: argparse.Namespace
) -> AsyncIterator[ApiProcess]:
    """The API as a process, over the same chain."""
    port = free_port()
    member = Member(name="api", role="api", folder=folder / "api", hotkey=Hotkey("-"), coldkey=Coldkey("-"))
    member.folder.mkdir()
    config = {
        "node": {"data_dir": str(member.folder / "data"), "log_format": "json", "metrics_port": 0},
        "chain": {"network": "local", "local_endpoint": node.url, "netuid": NETUID, "call_timeout_s": 10.0},
        "wallet": {"path": str(folder / "wallets"), "name": "api"},
        "api": {
            "port": port,
            "blocks_until_reveal": options.blocks_until_reveal,
            "reveal_window_blocks": 100_000,
            "writes_per_minute_per_hotkey": 100_000,
            "writes_per_minute_per_ip": 100_000,
        },
    }
    member.config_file.write_text(tomli_w.dumps(config))
    api = ApiProcess(member, f"http://127.0.0.1:{port}")
    await api.start()
    try:
        yield api
    finally:
        await api.kill()


def main(argv: list[str]) -> int:
    """Run, print JSON; 0 when every demand was met."""
    options = parse(argv)
    folder = Path(tempfile.mkdtemp(prefix="quasar-soak-"))
    try:
        report = asyncio.run(soak(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report, indent=2))
    return 0 if report["is_met"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
