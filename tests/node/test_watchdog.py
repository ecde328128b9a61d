"""A process that hangs is ended, one that works is left alone, and systemd is told the truth."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from node.settings_model import ChainSection, NodeSection, Settings
from node.watchdog import ServiceManager, Watchdog, open_watchdog


class Ended:
    """Takes the exit code instead of the process."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.happened = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.happened.set()


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        yield channel


def told(channel: socket.socket) -> list[str]:
    """What has been said so far."""
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(channel.recv(1024).decode())
    return found


def manager_at(channel: socket.socket, watchdog_us: str = "") -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": channel.getsockname(), "WATCHDOG_USEC": watchdog_us})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_ready_pings_and_stopping_are_told(channel: socket.socket) -> None:
    watchdog = Watchdog({}, limit_s=60, manager=manager_at(channel, "90000"), end=Ended())
    heard: list[str] = []
    task = asyncio.create_task(watchdog.run())

    def has_pinged_often() -> bool:
        heard.extend(told(channel))
        return heard.count("WATCHDOG=1") >= 3

    await until(has_pinged_often)
    task.cancel()
    await asyncio.wait([task])
    heard.extend(told(channel))
    assert heard[0] == "READY=1"
    assert heard[-1] == "STOPPING=1"


async def test_a_part_without_progress_ends_the_process_and_the_pings(channel: socket.socket) -> None:
    ended, since = Ended(), time.monotonic()
    ages = {"idle": lambda: time.monotonic() - since, "busy": lambda: 0.0}
    watchdog = Watchdog(ages, limit_s=0.4, manager=manager_at(channel), end=ended)
    task = asyncio.create_task(watchdog.run())
    await until(ended.happened.is_set)
    told(channel)
    await asyncio.sleep(0.3)
    assert ended.codes == [70]
    assert "WATCHDOG=1" not in told(channel)
    task.cancel()
    await asyncio.wait([task])


async def test_a_loop_that_hangs_ends_the_process() -> None:
    ended = Ended()
    task = asyncio.create_task(Watchdog({}, limit_s=0.4, end=ended).run())
    await asyncio.sleep(0)
    assert ended.happened.wait(20), "the thread has to notice while the loop stands still"
    assert ended.codes == [70]
    task.cancel()
    await asyncio.wait([task])


async def test_progress_is_left_alone() -> None:
    ended = Ended()
    task = asyncio.create_task(Watchdog({"busy": lambda: 0.0}, limit_s=2.0, end=ended).run())
    await asyncio.sleep(3.0)
    assert ended.codes == []
    task.cancel()
    await asyncio.wait([task])


HANGING = """
import asyncio, sys, time
from node.watchdog import Watchdog

async def main():
    task = asyncio.create_task(Watchdog({}, limit_s=0.5).run())
    await asyncio.sleep(0.1)
    time.sleep(60)

asyncio.run(main())
"""


def test_the_process_says_where_it_hung() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30)
    assert done.returncode == 70
    assert "no progress" in done.stderr
    assert "event loop" in done.stderr
    assert "time.sleep" in done.stderr or "in main" in done.stderr


def test_without_systemd_nothing_is_said() -> None:
    manager = ServiceManager({})
    manager.tell("READY=1")
    assert manager.watchdog_s is None
    ServiceManager({"NOTIFY_SOCKET": "/nonexistent/notify"}).tell("READY=1")


def test_an_abstract_socket_is_understood() -> None:
    name = f"@quasar-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name[1:])
        ServiceManager({"NOTIFY_SOCKET": name}).tell("READY=1")
        assert channel.recv(100) == b"READY=1"


def test_a_slow_chain_is_not_taken_for_a_hang() -> None:
    settings = Settings(node=NodeSection(watchdog_s=1.0), chain=ChainSection(call_timeout_s=30.0))
    assert open_watchdog(settings, {})._limit_s == 90.0
