"""Sandboxes with cgroups, attacked from inside; run by test_cgroups.py on a kernel of their own, as root."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cgroups import LEAF, PREFIX, Cgroup, find_parent, remove_leftovers
from node.sandbox import detect_tier, start_sandboxed
from node.sandbox_spec import Limits, SandboxSpec, SandboxTier, python_argv, python_mounts
from node.sandboxed_process import SandboxedProcess
from protocol.errors import CgroupUnavailable
from tests.fork_chain import mounted_chain
from tests.waiting import until

TOP = Path("/sys/fs/cgroup")
MIB = 2**20
ROOT = Path(__file__).parents[2]
SWARM = """
import os, time
for _ in range(12):
    if os.fork() == 0:
        held = bytearray(5 * 2**20)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(3600)
time.sleep(3600)
"""
"""A dozen processes, each of which is modest: more than 60 MiB together."""
UNPRIVILEGED = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]


def sandboxes() -> list[Path]:
    return list(TOP.rglob(f"{PREFIX}*"))


def start(program: str, memory_mb: int, *, processes: int = 64) -> SandboxedProcess:
    limits = Limits(memory_bytes=memory_mb * MIB, processes=processes)
    spec = SandboxSpec(argv=python_argv(program, []), mounts=python_mounts(), limits=limits)
    with tempfile.TemporaryFile() as output:
        return start_sandboxed(spec, pass_fds=(), output=output)


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup as systemd makes it for a unit with a user and Delegate=."""
    path = TOP / "delegated.service"
    (TOP / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    path.mkdir()
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(path / name, 65534, 65534)
    yield path
    for folder in sorted(path.rglob("*/"), reverse=True):
        folder.rmdir()
    path.rmdir()


def run_in(cgroup: Path, program: str, *prefix: str) -> str:
    """Output of a Python program that starts in a cgroup."""
    enter = f'echo 0 > "{cgroup}/cgroup.procs" && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", enter, "sh", *prefix, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_a_swarm_ends_at_the_limit_of_all_together() -> None:
    process = start(SWARM, memory_mb=50)
    code = process.wait(60)
    assert code not in (0, None)
    assert process.has_exceeded_memory
    assert not process.was_sacrificed
    process.kill()
    assert sandboxes() == []


def test_below_the_limit_it_lives_and_is_limited_in_all_that_matters() -> None:
    process = start(SWARM, memory_mb=400)
    try:
        (cgroup,) = sandboxes()

        def is_grown() -> bool:
            # Eleven of them, and what starts them, may hold as much before the last is there.
            processes = (cgroup / "cgroup.procs").read_text().split()
            return len(processes) >= 13 and int((cgroup / "memory.current").read_text()) > 60 * MIB

        until(is_grown, lambda: "the swarm does not grow")
        assert process.poll() is None
        assert not process.has_exceeded_memory
        assert (cgroup / "memory.max").read_text().strip() == str(400 * MIB)
        assert (cgroup / "memory.swap.max").read_text().strip() == "0"
        assert (cgroup / "memory.oom.group").read_text().strip() == "1"
        assert (cgroup / "pids.max").read_text().strip() == "64"
        assert (cgroup / "cpu.weight").exists(), "the CPU is shared out between sandbox and node"
    finally:
        process.kill()
    assert sandboxes() == [], "kill leaves no cgroup, and so no process"


def test_a_fork_bomb_stops_at_the_limit() -> None:
    bomb = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(1)"
    process = start(bomb, memory_mb=400, processes=40)
    (cgroup,) = sandboxes()
    until(lambda: "max 0" not in (cgroup / "pids.events").read_text(), lambda: "the limit was not reached")
    assert int((cgroup / "pids.current").read_text()) <= 40
    process.kill()
    assert sandboxes() == []


SACRIFICED = """
from node.cgroups import make_room
from tests.user_mode_linux.inside_cgroups import SWARM, start
make_room()
process = start(SWARM, memory_mb=400)
process.wait(60)
print(process.has_exceeded_memory, process.was_sacrificed)
process.kill()
"""


def test_who_ends_for_the_memory_of_others_has_not_exceeded_its_own(delegated: Path) -> None:
    os.setxattr(delegated, "trusted.delegate", b"1")
    # What both have together, the sandbox and who started it.
    (delegated / "memory.max").write_text(str(90 * MIB))
    assert run_in(delegated, SACRIFICED) == "False True"


def test_what_a_killed_process_left_is_removed_and_nothing_else() -> None:
    program = f"""
import tempfile
from tests.user_mode_linux.inside_cgroups import start
print(start({SWARM!r}, 400).poll(), flush=True)
import time; time.sleep(3600)
"""
    command = [sys.executable, "-c", program]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    for starter in starters:
        assert starter.stdout is not None
        with starter.stdout as output:
            assert output.readline() == b"None\n"
    (TOP / "somebody-elses").mkdir()
    before = set(sandboxes())
    assert len(before) == 2
    starters[0].send_signal(signal.SIGKILL)
    starters[0].wait()
    remove_leftovers(find_parent())
    (left,) = sandboxes()
    assert f"-{starters[1].pid}-" in left.name
    assert (left / "cgroup.procs").read_text() != ""
    starters[1].kill()
    starters[1].wait()
    # The next sandbox does the same.
    start("pass", memory_mb=300).kill()
    assert sandboxes() == []
    (TOP / "somebody-elses").rmdir()


def test_the_tier_of_root_is_that_of_its_cgroups() -> None:
    assert detect_tier() is SandboxTier.CGROUP
    assert find_parent() == TOP, "a cgroup that others share cannot have limited ones below"
    assert sandboxes() == []


def test_what_is_paused_is_frozen_whatever_wakes_it(tmp_path: Path) -> None:
    """A chain of processes that start each other, and have the kernel send SIGCONT."""
    spec = SandboxSpec(
        argv=["/bin/sh", "-c", "/data/link & sleep 600"],
        mounts=[mounted_chain(tmp_path, wakes_itself=True)],
        limits=Limits(memory_bytes=100 * MIB),
    )
    with tempfile.TemporaryFile() as output:
        process = start_sandboxed(spec, pass_fds=(), output=output)

        def size() -> int:
            return os.fstat(output.fileno()).st_size

        (cgroup,) = sandboxes()
        for _ in range(3):
            before = size()
            until(lambda before=before: size() > before + 10, lambda: "the chain does not go on")  # type: ignore[misc]
            process.pause()
            process.pause()
            assert "frozen 1" in (cgroup / "cgroup.events").read_text()
            stopped = size()
            time.sleep(0.3)
            assert size() == stopped
            process.resume()
        process.pause()
        process.kill()
    assert sandboxes() == []


ROOM = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"])
from node.cgroups import find_parent, make_room
from node.sandbox import detect_tier
make_room(); make_room()
print(find_parent(), detect_tier().value, open(f"/proc/{child.pid}/cgroup").read().strip())
# A process that this one has started, as a node starts its referee.
again = "from node.sandbox import detect_tier; print(detect_tier().value)"
print(subprocess.run([sys.executable, "-c", again], capture_output=True, text=True).stdout.strip())
child.kill(); child.wait()
"""


def test_a_delegated_cgroup_is_arranged_without_root(delegated: Path) -> None:
    tier = SandboxTier.CGROUP.value
    for _ in range(2):
        assert run_in(delegated, ROOM, *UNPRIVILEGED).split() == [
            str(delegated), tier, f"0::/{delegated.name}/{LEAF}", tier,
        ]  # fmt: skip
        assert not list(delegated.glob(f"{PREFIX}*"))
        # As systemd does before it starts a unit again.
        (delegated / LEAF).rmdir()
        (delegated / "cgroup.subtree_control").write_text("-memory -pids -cpu")


def test_a_cgroup_with_others_in_it_is_left_as_it_is(delegated: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        (delegated / "cgroup.procs").write_text(str(other.pid))
        found = run_in(
            delegated,
            "from node.cgroups import find_parent, make_room\n"
            "make_room()\n"
            "try: find_parent()\n"
            "except Exception as error: print(error.reason, '|', error.fix)",
            *UNPRIVILEGED,
        )
        assert f"cgroup {delegated} is not this node's own | start the node from deploy/systemd" in found
        assert list(delegated.rglob("*/")) == []
    finally:
        other.kill()
        other.wait()


def test_root_arranges_no_cgroup_that_systemd_keeps(delegated: Path) -> None:
    program = "from node.cgroups import find_parent, make_room; make_room(); print(find_parent())"
    assert run_in(delegated, program) == str(TOP)
    assert list(delegated.rglob("*/")) == []
    os.setxattr(delegated, "trusted.delegate", b"1")
    assert run_in(delegated, program) == str(delegated)


def test_what_is_read_only_is_said() -> None:
    found = subprocess.run(
        [
            "unshare", "--mount", "sh", "-c", 'mount -o remount,ro,bind /sys/fs/cgroup; exec "$@"', "sh",
            sys.executable, "-c",
            "from node.cgroups import find_parent\n"
            "from node.sandbox import detect_tier\n"
            "print(detect_tier().value)\n"
            "find_parent()",
        ],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert found.stdout.strip() == SandboxTier.BWRAP.value
    assert "CgroupUnavailable: /sys/fs/cgroup is read-only" in found.stderr


def test_a_cgroup_that_the_kernel_refuses_is_no_sandbox(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot be made"):
        Cgroup.create(tmp_path / "nowhere", memory_bytes=MIB, processes=1)


def test_without_cgroup_v2_that_is_said() -> None:
    found = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup; exec "$@"', "sh", sys.executable, "-c",
         "from node.cgroups import find_parent; find_parent()"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert "cgroup v2 is not mounted" in found.stderr
    assert CgroupUnavailable.__name__ in found.stderr
