"""Processes that are stopped, and what gives away those that did not stay so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node import process_tree, sandboxed_process, standstill
from node.process_tree import family, signal_all, stat_fields
from node.sandboxed_process import SandboxedProcess
from node.standstill import RanWhileStopped, Standstill
from tests.requirements import missing
from tests.waiting import until

Start = Callable[[str], int]

BUSY = """
import threading
for _ in range(4):
    threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
"""
WAKES = """
import ctypes, signal, struct
signal.signal(signal.SIGCONT, lambda *_: None)
libc, timer = ctypes.CDLL(None), ctypes.c_void_p()
event = ctypes.create_string_buffer(struct.pack("=QiiQ", 0, 18, 0, 0), 64)
assert libc.timer_create(1, event, ctypes.byref(timer)) == 0
# Again and again: on a busy machine it may take longer than once until it is stopped.
libc.timer_settime(timer, 0, struct.pack("=qqqq", 0, 500_000_000, 0, 500_000_000), None)
"""
SUBPROCESSES = """
import subprocess, threading
def start():
    while True:
        subprocess.run(["/bin/true"])
threading.Thread(target=start, daemon=True).start()
"""
LEAVES = """
import ctypes, os, signal
# A new user namespace, and one of processes, whose first ends only when every other was waited for.
assert ctypes.CDLL(None).unshare(0x30000000) == 0
if os.fork() == 0:
    signal.pause()
other = os.fork()
if other == 0:
    os._exit(0)
os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
signal.signal(signal.SIGUSR1, lambda *_: os.waitpid(other, 0))
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a Python program and returns its process, once it has run."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(program: str) -> int:
        program += "\nimport signal\nprint('ready', flush=True)\nwhile True: signal.pause()"
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield start_one
    for process in started:
        signal_all(family(process.pid), signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("program", ["", BUSY, SUBPROCESSES], ids=["idle", "busy", "starts others"])
def test_what_stands_still_goes_on(program: str, start: Start) -> None:
    pid = start(program)
    processors = os.sched_getaffinity(0)
    for _ in range(5):
        still = Standstill(pid)
        time.sleep(0.05)
        still.end()
        time.sleep(0.01)
    assert os.sched_getaffinity(0) == processors


def test_who_is_woken_is_found_by_how_long_it_ran(start: Start) -> None:
    still = Standstill(start(BUSY + WAKES))
    time.sleep(1.0)
    with pytest.raises(RanWhileStopped, match=r"^it ran for \d+\.\d+ ms while it was stopped$"):
        still.end()


def test_who_is_woken_all_the_time_cannot_be_stopped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "LOOKS", 5)
    # Longer than it takes until who wakes it gets a busy processor again.
    monkeypatch.setattr(standstill, "SETTLED_S", 0.2)
    pid = start(BUSY)
    waking = subprocess.Popen(
        ["/bin/sh", "-c", f"kill -CONT {pid}; echo; while kill -CONT {pid}; do :; done"],
        stdout=subprocess.PIPE,
    )
    try:
        assert waking.stdout is not None
        with waking.stdout:
            assert waking.stdout.readline() == b"\n"
        with pytest.raises(RanWhileStopped, match=r"^it could not be stopped: .* none of 5 looks$"):
            Standstill(pid)
    finally:
        waking.kill()
        waking.wait()


def test_a_process_that_was_not_there_is_found(start: Start) -> None:
    still = Standstill(os.getpid(), with_itself=False)
    start("")
    try:
        with pytest.raises(RanWhileStopped, match="were started while it was stopped"):
            still.end()
    finally:
        # What else this process has started (other fixtures) is to go on.
        signal_all(family(os.getpid()) - {os.getpid()}, signal.SIGCONT)


@pytest.mark.parametrize("ended_for_memory", [0, 1])
def test_who_ended_did_not_stand_still_unless_the_kernel_ended_it(
    ended_for_memory: int, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = start("import os, signal\nif os.fork() == 0: signal.pause()")
    (child,) = family(pid) - {pid}
    counted = [0, ended_for_memory]
    monkeypatch.setattr(standstill, "_ended_for_memory", lambda: counted.pop(0))
    still = Standstill(pid)
    os.kill(child, signal.SIGKILL)
    until(lambda: _state(child) == "Z", lambda: _state(child))
    if ended_for_memory:
        still.end()
    else:
        with pytest.raises(RanWhileStopped, match="ended while it was stopped"):
            still.end()


def test_who_was_ending_already_may_end_meanwhile(start: Start) -> None:
    """A driver may take its time to close what a process leaves: it runs no code of its own any more."""
    unshared = subprocess.run(["unshare", "--user", "--pid", "--fork", "/bin/true"], check=False)
    if unshared.returncode != 0:
        missing("namespaces of processes are not allowed here")
    pid = start(LEAVES)
    (first,) = (child for child in family(pid) - {pid} if _state(child) != "Z")
    os.kill(first, signal.SIGKILL)
    still = Standstill(pid, with_itself=False)
    assert _state(first) == "S"
    os.kill(pid, signal.SIGUSR1)
    until(lambda: _state(first) == "Z", lambda: _state(first))
    still.end()


def _state(pid: int) -> str:
    return (stat_fields(str(pid)) or ["gone"])[0]


def test_one_short_run_is_let_pass_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger or a hypervisor can make it look so; in one pause of all nobody gains anything."""
    # How short is no matter here, and on a busy machine not known.
    monkeypatch.setattr(sandboxed_process, "ONCE_NS", 1_000_000_000)
    program = "import signal\nsignal.signal(signal.SIGCONT, lambda *_: None)\nprint('ready', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}\nwhile True: signal.pause()"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    sandboxed = SandboxedProcess(process)
    try:
        assert process.stdout is not None
        process.stdout.readline()

        def pause_and_wake() -> None:
            sandboxed.pause()
            os.kill(process.pid, signal.SIGCONT)
            until(lambda: _state(process.pid) == "S", lambda: _state(process.pid))

        pause_and_wake()
        sandboxed.resume()
        sandboxed.pause()
        sandboxed.resume()
        pause_and_wake()
        with pytest.raises(RanWhileStopped, match=r"^it ran for \d+\.\d+ ms while it was stopped$"):
            sandboxed.resume()
    finally:
        sandboxed.kill()
        process.communicate()


def test_the_family_is_the_same_where_the_kernel_lists_no_children(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = start("import os, signal\nif os.fork() == 0:\n    os.fork()\n    signal.pause()")
    until(lambda: len(family(pid)) == 3, lambda: family(pid))
    listed = family(pid)
    monkeypatch.setattr(process_tree, "_lists_children", lambda: False)
    assert family(pid) == listed


def test_who_watches_over_it_is_spared(start: Start) -> None:
    pid = start("")
    still = Standstill(os.getpid(), with_itself=False)
    assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "T"
    still.end()
