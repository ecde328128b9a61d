"""status.json: complete, current, and never half-written."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from node.bus import Bus
from node.metrics import Metrics
from protocol.events import BlockAdvanced, KernelJudged, WeightsSet
from protocol.verdicts import Status
from roles.status import STATUS_FILE, StatusKeeper, write_atomically
from tests.fakes.clock import FakeClock

HOTKEY = "5HotkeyOfTheNode"


async def written(path: Path, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the file says so."""
    async with asyncio.timeout(60):
        while True:
            if path.exists() and condition(status := json.loads(path.read_text())):
                return dict(status)
            await asyncio.sleep(0.01)


async def wrote_and_waits(clock: FakeClock) -> None:
    """Wait until the component has done what it does in a second, and sleeps to the next."""
    async with asyncio.timeout(60):
        while not clock.sleepers:
            await asyncio.sleep(0.01)


async def run_with(keeper: StatusKeeper, test: Awaitable[None]) -> None:
    """Run the component during a test."""
    task = asyncio.create_task(keeper.run())
    try:
        await test
        assert not task.done()
    finally:
        task.cancel()


async def test_status_shows_height_facts_and_sections(tmp_path: Path) -> None:
    bus, clock, metrics = Bus(), FakeClock(), Metrics()
    count = 0

    async def section() -> list[int]:
        nonlocal count
        count += 1
        return [count]

    keeper = StatusKeeper(
        role="validator",
        hotkey=HOTKEY,
        data_dir=tmp_path,
        bus=bus,
        clock=clock,
        metrics=metrics,
        facts=(KernelJudged, WeightsSet),
        sections={"verdicts": section},
    )

    async def test() -> None:
        path = tmp_path / STATUS_FILE
        first = await written(path, lambda status: True)
        assert (first["role"], first["hotkey"], first["height"]) == ("validator", HOTKEY, None)
        assert first["kernel_judged"] is None
        await bus.publish(BlockAdvanced(height=41, previous=None))
        await bus.publish(BlockAdvanced(height=42, previous=41))
        judged = KernelJudged(submission_id=7, hotkey="5Miner", status=Status.PASSED, tokens_per_sec=9.5)
        await bus.publish(judged)
        await bus.publish(WeightsSet(height=42, weights=(("5Miner", 1.0),)))
        await wrote_and_waits(clock)
        await clock.advance(1.0)
        status = await written(path, lambda status: status["height"] == 42)
        assert status["kernel_judged"]["submission_id"] == 7
        assert status["kernel_judged"]["status"] == "passed"
        assert status["weights_set"]["weights"] == [["5Miner", 1.0]]
        assert status["verdicts"][0] >= 2
        assert status["written_at"] == clock.now().isoformat()
        assert metrics.values()["quasar_block_height"] == 42

    await run_with(keeper, test())


def test_writing_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / STATUS_FILE
    write_atomically(path, "old")
    inode = path.stat().st_ino
    write_atomically(path, "new")
    assert path.read_text() == "new\n"
    assert path.stat().st_ino != inode
    assert list(tmp_path.iterdir()) == [path]


async def test_unchanged_status_is_written_seldom_but_shows_that_the_node_lives(tmp_path: Path) -> None:
    bus, clock = Bus(), FakeClock()
    keeper = StatusKeeper(
        role="miner",
        hotkey=HOTKEY,
        data_dir=tmp_path,
        bus=bus,
        clock=clock,
        metrics=Metrics(),
        facts=(),
        sections={},
    )

    async def test() -> None:
        path = tmp_path / STATUS_FILE
        first = await written(path, lambda status: True)
        for _ in range(5):
            await wrote_and_waits(clock)
            await clock.advance(1.0)
        await wrote_and_waits(clock)
        assert json.loads(path.read_text())["written_at"] == first["written_at"]
        for _ in range(8):
            await clock.advance(1.0)
            await wrote_and_waits(clock)
        assert json.loads(path.read_text())["written_at"] > first["written_at"]

    await run_with(keeper, test())


async def test_a_status_that_cannot_be_written_ends_nobody(tmp_path: Path) -> None:
    clock = FakeClock()
    keeper = StatusKeeper(
        role="miner",
        hotkey=HOTKEY,
        data_dir=tmp_path,
        bus=Bus(),
        clock=clock,
        metrics=Metrics(),
        facts=(),
        sections={},
    )
    draft = tmp_path / f".{STATUS_FILE}.new"
    draft.mkdir()

    async def test() -> None:
        await wrote_and_waits(clock)
        assert not (tmp_path / STATUS_FILE).exists()
        draft.rmdir()
        await clock.advance(1)
        await written(tmp_path / STATUS_FILE, lambda status: True)

    with structlog.testing.capture_logs() as logs:
        await run_with(keeper, test())
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "the status cannot be written, it is tried again every second"
    ]
