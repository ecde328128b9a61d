"""What the soak measured, against what is demanded."""

import asyncio
import os
import platform
import sqlite3
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.chain.faults import FaultMaker
from benchmarks.chain.miner import Diary, SoakMiner
from node.chain.local_state import FIRST_HEIGHT, LocalParameters

LATE_BLOCKS = 2.0
RECOVERY_S = 5.0
GROWTH_BYTES = 24 * 2**20
GROWTH_FILES = 8
GROWTH_SHOWS_S = 120.0
"""A shorter run is still filling its pools."""
SAMPLE_S = 2.0
CPU_SHARE = 0.05
DETECTION_SLACK_S = 0.1


class Samples:
    """Memory and open files of this process and of the API, every few seconds."""

    def __init__(self, api_pid: Callable[[], int]) -> None:
        self._api_pid = api_pid
        self.own: list[tuple[int, int]] = []
        self.api_files: list[int] = []

    async def take_until(self, until_s: float) -> None:
        """Sample until that moment of the monotonic clock."""
        while time.monotonic() < until_s:
            self.own.append((_rss_bytes(os.getpid()), _open_files(os.getpid())))
            # It may be killed at this very moment.
            with suppress(FileNotFoundError):
                self.api_files.append(_open_files(self._api_pid()))
            await asyncio.sleep(SAMPLE_S)

    def memory_mib(self) -> list[float]:
        """Median of each tenth of the run."""
        values = [memory for memory, _ in self.own]
        tenth = max(1, len(values) // 10)
        parts = [values[start : start + tenth] for start in range(0, len(values), tenth)]
        return [round(statistics.median(part) / 2**20, 1) for part in parts[:10]]

    def growth(self, column: int) -> float:
        """Median of the last fifth less the median of the second: the first is for warming up."""
        values = [sample[column] for sample in self.own]
        fifth = max(1, len(values) // 5)
        return statistics.median(values[-fifth:]) - statistics.median(values[fifth : 2 * fifth] or values)


async def describe(
    options: Namespace,
    miners: Sequence[SoakMiner],
    faults: FaultMaker,
    samples: Samples,
    *,
    cpu_share: float,
    database: Path,
    disk_s: Sequence[float],
) -> dict[str, Any]:
    """The whole report, ready for JSON; `database` is the API's, `disk_s` what the disk took meanwhile."""
    diaries = [diary for miner in miners for diary in miner.diaries.values()]
    late = [_late_blocks(diary, options.block_time) for diary in diaries]
    without_disk = [_late_blocks(diary, options.block_time, diary.journal_s) for diary in diaries]
    recoveries = recovery_s(miners, faults)
    rows = _revealed_at(database)
    revealed = sum([await miner.revealed() for miner in miners])
    demands = {
        "no reveal early": all((one.first_try_height or 0) >= one.reveal_block for one in diaries),
        "none late by more than two blocks": max(late) <= LATE_BLOCKS,
        "none lost": 0 < len(diaries) == revealed == len(rows) == sum(map(bool, rows.values())),
        "none doubled": all(one.accepted <= 1 for one in diaries),
        "recovery within 5 s": max(recoveries, default=0.0) <= RECOVERY_S,
    }
    if options.blocks * options.block_time >= GROWTH_SHOWS_S:
        demands["memory does not grow"] = samples.growth(0) <= GROWTH_BYTES
        demands["files do not grow"] = samples.growth(1) <= GROWTH_FILES
    return {
        "is_met": all(demands.values()),
        "demands": demands,
        "blocks": options.blocks,
        "block_time_s": options.block_time,
        "seed": options.seed,
        "faults": dict(faults.made),
        "commitments": len(diaries),
        "revealed": revealed,
        "reveals_accepted": sum(one.accepted for one in diaries),
        "reveals_tried": sum(one.tries for one in diaries),
        "late_blocks": _spread(late),
        "later_than_two_blocks": sum(one > LATE_BLOCKS for one in late),
        "late_blocks_without_the_journal": _spread(without_disk),
        "journal_s": _spread([diary.journal_s for diary in diaries]),
        "fdatasync_s": _spread(disk_s),
        "recovery_s": _spread(recoveries),
        "cpu_share_of_a_core": round(cpu_share, 4),
        "cpu_is_of": f"{len(miners)} miners with {miners[0].in_flight} commitments each",
        "memory_growth_mib": round(samples.growth(0) / 2**20, 2),
        "memory_mib": samples.memory_mib(),
        "diaries_mib": round(sum(miner.diaries_bytes() for miner in miners) / 2**20, 2),
        "open_files_growth": samples.growth(1),
        "open_files": samples.own[-1][1],
        "api_open_files": [min(samples.api_files), max(samples.api_files)],
        **_where(),
    }


def describe_waiting(
    options: Namespace, miners: Sequence[SoakMiner], parameters: LocalParameters, *, cpu_share: float
) -> dict[str, Any]:
    """What waiting costs, and how long after its beginning a block was seen."""
    limit_s = options.block_time / 2 + DETECTION_SLACK_S
    seen_s = [latency for miner in miners for latency in detection_s(miner, parameters)]
    demands = {
        "under 5 % of a core": cpu_share < CPU_SHARE,
        "a block is seen within half its time and 100 ms": max(seen_s) <= limit_s,
    }
    return {
        "is_met": all(demands.values()),
        "demands": demands,
        "blocks": options.blocks,
        "block_time_s": options.block_time,
        "cpu_share_of_a_core": round(cpu_share, 4),
        "cpu_is_of": f"{len(miners)} miners with {miners[0].in_flight} commitments each, in one process",
        "detection_s": _spread(seen_s),
        "detection_limit_s": limit_s,
        **_where(),
    }


def detection_s(miner: SoakMiner, parameters: LocalParameters) -> list[float]:
    """Seconds from the beginning of each block to the event that told of it, or of a later one."""
    to_wall_s = time.time() - time.monotonic()
    founded_s = parameters.genesis_unix_s - FIRST_HEIGHT * parameters.block_time_s
    found = []
    for (_, previous), (at_s, height) in pairwise(miner.blocks):
        for one in range(previous + 1, height + 1):
            found.append(at_s + to_wall_s - (founded_s + one * parameters.block_time_s))
    return found


def recovery_s(miners: Sequence[SoakMiner], faults: FaultMaker) -> list[float]:
    """For every fault of the chain, how long after its end the slowest miner saw a new block."""
    found = []
    for kind, _, ended_s in faults.windows:
        if kind == "API killed":
            continue
        nexts = [next((at_s for at_s, _ in miner.blocks if at_s >= ended_s), None) for miner in miners]
        if all(moment is not None for moment in nexts):
            found.append(max(moment - ended_s for moment in nexts if moment is not None))
    return found


def _late_blocks(diary: Diary, block_time_s: float, excused_s: float = 0.0) -> float:
    """From the moment at which the miner saw the due block to its first attempt, less what is excused."""
    if diary.first_try_at_s is None or diary.seen_due_at_s is None:
        return float("inf")
    return max(0.0, diary.first_try_at_s - diary.seen_due_at_s - excused_s) / block_time_s


def _revealed_at(database: Path) -> dict[int, str | None]:
    """When each submission of the API's database was revealed."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT id, revealed_at FROM submissions").fetchall())


def _where() -> dict[str, Any]:
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), "bittensor": version("bittensor")},
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
        "max": round(ordered[-1], 3),
    }


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
