"""Turns on a device between processes: background work gives way, urgent work waits a stated time at most."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.clock import SystemClock
from node.device_turns import URGENT_PATIENCE_S, BackgroundTurn, urgent_turn
from node.locks import device_lock
from protocol.errors import DeviceBusy

DEVICE = "cuda:7"
CLOCK = SystemClock()

_SEARCH = """
import sys, time
from node.device_turns import BackgroundTurn
step_s, gives_way = float(sys.argv[1]), sys.argv[2] == "yes"
with BackgroundTurn("cuda:7", timeout_s=10) as turn:
    print("started", flush=True)
    while True:
        time.sleep(step_s)
        if gives_way:
            turn.give_way()
"""


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Locks of this test alone, in its own process and in those that it starts."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def search(step_s: float, *, gives_way: bool) -> subprocess.Popen[str]:
    """A process that holds the device and works in steps."""
    command = [sys.executable, "-c", _SEARCH, str(step_s), "yes" if gives_way else "no"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def is_held() -> bool:
    """True while somebody has the device."""
    try:
        with device_lock(DEVICE, timeout_s=0.0):
            return False
    except DeviceBusy:
        return True


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


async def test_search_gives_way_and_goes_on(env: dict[str, str]) -> None:
    process = search(0.05, gives_way=True)
    try:
        async with urgent_turn(DEVICE, CLOCK, patience_s=30.0):
            assert is_held()
        async with asyncio.timeout(30):
            # It takes its turn again.
            while not is_held():
                await asyncio.sleep(0.01)
        assert process.poll() is None
    finally:
        end(process)


async def test_urgent_work_does_not_wait_for_a_step_that_takes_too_long(env: dict[str, str]) -> None:
    process = search(600.0, gives_way=False)
    try:
        started = time.monotonic()
        async with urgent_turn(DEVICE, CLOCK, patience_s=0.3):
            waited = time.monotonic() - started
        assert waited >= 0.3
        assert process.poll() is None
        assert URGENT_PATIENCE_S <= 2.0
    finally:
        end(process)


async def test_free_device_is_taken_at_once_and_given_back(env: dict[str, str]) -> None:
    async with urgent_turn(DEVICE, CLOCK):
        with pytest.raises(DeviceBusy):
            BackgroundTurn(DEVICE, timeout_s=0.0).acquire()
    with BackgroundTurn(DEVICE, timeout_s=0.0) as turn:
        turn.give_way()


async def test_background_work_does_not_begin_before_urgent_work_has_ended(env: dict[str, str]) -> None:
    turn = BackgroundTurn(DEVICE, timeout_s=30.0)
    async with urgent_turn(DEVICE, CLOCK):
        beginning = asyncio.create_task(asyncio.to_thread(turn.acquire))
        await asyncio.sleep(0.3)
        assert not beginning.done()
    await beginning
    turn.release()


async def test_two_that_are_urgent_do_not_wait_longer_than_stated(env: dict[str, str]) -> None:
    async with urgent_turn(DEVICE, CLOCK), urgent_turn(DEVICE, CLOCK, patience_s=0.1):
        pass


async def test_lock_that_cannot_be_opened_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quasar-node-locks").write_text("in the way")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    done = False
    async with urgent_turn(DEVICE, CLOCK):
        done = True
    assert done


async def test_processes_on_a_cpu_do_not_wait_for_each_other(env: dict[str, str]) -> None:
    with BackgroundTurn("cpu", timeout_s=0.0):
        async with urgent_turn("cpu", CLOCK):
            pass
