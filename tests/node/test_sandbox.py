"""The sandbox, attacked from inside with real programs."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from node.sandbox import OLD_STAGE_S, STAGE_PREFIX, remove_old_stages, start_sandboxed
from node.sandbox_spec import Limits, Mount, SandboxSpec, python_argv, python_mounts
from node.seccomp import denied_calls
from node.standstill import RanWhileStopped
from protocol.errors import SandboxUnavailable
from tests.fork_chain import mounted_chain
from tests.processes import command_lines, is_gone
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("bubblewrap")


def run_inside(
    argv: Sequence[str],
    *,
    mounts: Sequence[Mount] = (),
    limits: Limits | None = None,
    timeout_s: float = 30.0,
) -> tuple[int | None, str]:
    """Run a program in the sandbox; returns its exit code (None: killed at the deadline) and its output."""
    with tempfile.TemporaryFile() as output:
        spec = SandboxSpec(argv=argv, mounts=mounts, limits=limits or Limits())
        process = start_sandboxed(spec, pass_fds=(), output=output)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def shell(script: str, **options: object) -> tuple[int | None, str]:
    """Run a shell script in the sandbox."""
    return run_inside(["/bin/sh", "-c", script], **options)  # type: ignore[arg-type]


def python(program: str) -> tuple[int | None, str]:
    """Run a Python program in the sandbox."""
    return run_inside(python_argv(program, []), mounts=python_mounts())


def test_environment_is_empty_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_very_secret")
    code, output = shell("env; for f in /proc/*/environ; do tr '\\0' '\\n' < $f; done")
    assert code == 0, output
    assert "ghp_very_secret" not in output
    assert {line.split("=")[0] for line in output.splitlines() if "=" in line} <= {
        "PWD",
        "HOME",
        "PATH",
        "USER",
        "SHLVL",
        "_",
        "OLDPWD",
    }


def test_user_is_unprivileged_and_has_no_capabilities() -> None:
    code, output = shell("id -u; grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status")
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == (str(65534) if os.geteuid() == 0 else str(os.geteuid()))
    values = dict(line.split(":\t") for line in lines[1:])
    assert int(values["CapEff"], 16) == int(values["CapPrm"], 16) == 0
    assert values["NoNewPrivs"] == "1"


def test_nothing_can_be_written_but_the_private_tmp(tmp_path: Path) -> None:
    victim = tmp_path / "shared"
    victim.mkdir()
    victim.chmod(0o777)
    script = (
        "for d in / /usr /data /proc/sys/kernel; do touch $d/x 2>/dev/null && echo wrote $d; done; "
        "touch /tmp/x /dev/shm/x && echo private"
    )
    code, output = shell(script, mounts=[Mount(host=victim, inside=Path("/data"))])
    assert code == 0
    assert output.split() == ["private"]
    assert list(victim.iterdir()) == []


def test_the_host_file_system_is_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "wallet"
    secret.write_text("mnemonic")
    code, output = shell(f"cat {secret} /etc/shadow /etc/passwd; ls /home /var; true")
    assert code == 0
    assert "mnemonic" not in output
    assert "root:" not in output


def test_there_is_no_network() -> None:
    code, output = python(
        "import socket\n"
        "for family, address in ((socket.AF_INET, ('127.0.0.1', 9)), (socket.AF_INET, ('192.0.2.1', 80))):\n"
        "    try:\n"
        "        socket.socket(family).connect(address)\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
        "    else:\n"
        "        print('connected')\n"
        "print([name for _, name in socket.if_nameindex()])\n"
    )
    assert code == 0, output
    assert "connected" not in output
    assert "['lo']" in output


def test_processes_of_the_host_cannot_be_seen_or_signalled() -> None:
    code, output = shell(f"ls /proc | grep -c '^[0-9]'; kill -9 -1; kill -0 {os.getpid()} && echo alive")
    assert "alive" not in output
    assert code in (0, 1, 137, 9, -9)
    os.kill(os.getpid(), 0)


def test_no_new_user_namespaces() -> None:
    code, output = shell("unshare --user --map-root-user true")
    assert code != 0, output


def test_calls_that_have_led_out_of_sandboxes_are_refused() -> None:
    program = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {denied_calls(platform.machine())!r}.items():\n"
        "    if libc.syscall(number, -1, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:\n"
        "        print(name, ctypes.get_errno())\n"
        "assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38, 'clone3'\n"
        "os.close(os.memfd_create('needed'))\n"
        "print('done', open('/proc/self/status').read().split('Seccomp:')[1].split()[0])\n"
    )
    assert python(program) == (0, "done 2\n")


def test_threads_and_processes_still_start() -> None:
    code, output = python(
        "import subprocess, threading\n"
        "thread = threading.Thread(target=print, args=('thread',))\n"
        "thread.start(); thread.join()\n"
        "print(subprocess.run(['/bin/echo', 'process'], capture_output=True, text=True).stdout.strip())\n"
    )
    assert (code, output) == (0, "thread\nprocess\n")


def test_a_hang_ends_at_the_deadline_with_all_its_children() -> None:
    started = time.monotonic()
    code, _ = shell("sleep 3610 & sleep 3610 & wait", timeout_s=1.0)
    assert code is None
    assert time.monotonic() - started < 10
    assert_ends(b"sleep\x003610")


def assert_ends(command: bytes) -> None:
    """The kernel ends a pid namespace in its own time."""
    until(
        lambda: not any(command in line for line in command_lines().values()),
        lambda: f"{command!r} is still there",
    )


def test_a_daemon_does_not_survive() -> None:
    code, _ = shell("setsid sh -c 'sleep 3611' </dev/null >/dev/null 2>&1 & exit 0")
    assert code == 0
    assert_ends(b"sleep\x003611")


def test_a_fork_bomb_is_contained() -> None:
    code, output = shell(
        "i=0; while [ $i -lt 400 ]; do sleep 600 & i=$((i+1)); done; echo started $i",
        limits=Limits(processes=64),
        timeout_s=20.0,
    )
    assert "started 400" not in output
    assert code != 0 or "fork" in output.lower()


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (5, 14),
    reason="before Linux 5.14 all sandboxes of a user are counted together",
)
def test_one_that_is_full_of_processes_leaves_others_theirs() -> None:
    fills = "sh -c 'while :; do sleep 600 & done'; echo full; sleep 600"
    with tempfile.TemporaryFile() as output:
        spec = SandboxSpec(argv=["/bin/sh", "-c", fills], limits=Limits(processes=64))
        full = start_sandboxed(spec, pass_fds=(), output=output)
        try:
            until(lambda: b"full" in os.pread(output.fileno(), 4096, 0), lambda: "it does not get full")
            assert shell("sleep 0 & wait; echo started", limits=Limits(processes=16)) == (0, "started\n")
        finally:
            full.kill()


def test_memory_and_files_are_limited() -> None:
    code, output = run_inside(
        python_argv("x = bytearray(2 * 2**30)", []),
        mounts=python_mounts(),
        limits=Limits(data_bytes=512 * 2**20),
    )
    assert code != 0
    assert "MemoryError" in output
    code, output = shell("head -c 20000000 /dev/zero > /tmp/x", limits=Limits(file_bytes=10_000_000))
    assert code != 0
    code, output = shell("head -c 20000000 /dev/zero > /tmp/x", limits=Limits(tmp_bytes=10_000_000))
    assert code != 0
    assert "No space" in output


def test_only_passed_descriptors_are_open() -> None:
    with tempfile.NamedTemporaryFile() as secret:
        os.set_inheritable(secret.fileno(), True)
        code, output = shell("ls -l /proc/self/fd")
    assert code == 0
    assert secret.name not in output


def test_staging_leaves_nothing_behind() -> None:
    before = set(Path("/tmp").glob("quasar-stage-*"))
    assert python("print('hello')") == (0, "hello\n")
    assert set(Path("/tmp").glob("quasar-stage-*")) <= before


def test_missing_bubblewrap_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else real(name))
    with pytest.raises(SandboxUnavailable, match=r"bwrap is missing.*apt-get install bubblewrap"):
        shell("true")


def test_a_paused_sandbox_stands_still_with_all_that_it_started() -> None:
    tick = "while :; do echo tick; sleep 0.02; done"
    with tempfile.TemporaryFile() as output:
        spec = SandboxSpec(argv=["/bin/sh", "-c", f"({tick}) & (setsid sh -c '{tick}' &) ; {tick}"])
        process = start_sandboxed(spec, pass_fds=(), output=output)

        def size() -> int:
            return os.fstat(output.fileno()).st_size

        def wait_for_growth(since: int) -> None:
            deadline = time.monotonic() + 20.0
            while size() < since + 100:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        try:
            wait_for_growth(0)
            for _ in range(3):
                process.pause()
                stopped = size()
                time.sleep(0.3)
                assert size() == stopped
                process.resume()
                wait_for_growth(stopped)
            process.pause()
        finally:
            process.kill()
        assert process.poll() is not None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")
@pytest.mark.parametrize("wakes_itself", [False, True], ids=["by each other", "by timers"])
def test_a_chain_of_processes_is_stopped_or_found(wakes_itself: bool, tmp_path: Path) -> None:
    """Processes that fork and end send SIGCONT to all others, and say so."""
    mount = mounted_chain(tmp_path, wakes_itself=wakes_itself)
    with tempfile.TemporaryFile() as output:
        spec = SandboxSpec(argv=["/bin/sh", "-c", "/data/link & sleep 600"], mounts=[mount])
        process = start_sandboxed(spec, pass_fds=(), output=output)

        def size() -> int:
            return os.fstat(output.fileno()).st_size

        try:
            for _ in range(3):
                before = size()
                until(lambda before=before: size() > before + 10, lambda: "the chain ended")  # type: ignore[misc]
                try:
                    process.pause()
                    stopped = size()
                    time.sleep(0.3)
                    still = size()
                    process.resume()
                except RanWhileStopped:
                    return
                assert still == stopped
        finally:
            process.kill()


def test_stages_that_a_killed_process_left_are_removed_and_no_others(tmp_path: Path) -> None:
    day_ago = time.time() - OLD_STAGE_S - 60
    for name in (f"{STAGE_PREFIX}old", f"{STAGE_PREFIX}new", "something-old", f"{STAGE_PREFIX}full"):
        (tmp_path / name).mkdir()
    (tmp_path / f"{STAGE_PREFIX}full" / "kept").touch()
    for name in (f"{STAGE_PREFIX}old", "something-old", f"{STAGE_PREFIX}full"):
        os.utime(tmp_path / name, (day_ago, day_ago))
    remove_old_stages(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{STAGE_PREFIX}new", "something-old", f"{STAGE_PREFIX}full"}


PAUSED = """
import sys, time
from node.sandbox import start_sandboxed, start_unsandboxed
from node.sandbox_spec import SandboxSpec
from tests.node.test_sandbox import sleepers
from tests.waiting import until

start = {"with": start_sandboxed, "without": start_unsandboxed}[sys.argv[1]]
process = start(SandboxSpec(argv=["/bin/sleep", sys.argv[2]]), pass_fds=(), output=sys.stderr.buffer)
until(lambda: sleepers(sys.argv[2]), lambda: "it does not sleep")
process.pause()
print("paused", flush=True)
time.sleep(1000)
"""


def sleepers(seconds: str) -> list[int]:
    """The processes that sleep for so long."""
    return [pid for pid, words in command_lines().items() if words == f"/bin/sleep\0{seconds}\0".encode()]


@pytest.mark.parametrize(("sandbox", "seconds"), [("with", "86405"), ("without", "86406")])
def test_one_that_is_paused_ends_with_who_started_it(sandbox: str, seconds: str) -> None:
    """Stopped, it cannot see that nobody is there any more."""
    command = [sys.executable, "-c", PAUSED, sandbox, seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"paused\n"
        assert sleepers(seconds)
        starter.kill()
    until(lambda: all(map(is_gone, sleepers(seconds))), lambda: "it still sleeps", timeout_s=20.0)


def test_no_socket_leads_out_of_the_namespace_of_networks() -> None:
    """A virtual machine's AF_VSOCK belongs to no namespace, and leads to the hypervisor."""
    program = """
import socket
for family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_VSOCK", "AF_ALG", "AF_PACKET"):
    try:
        socket.socket(getattr(socket, family), socket.SOCK_DGRAM).close()
        print(family, "is there")
    except OSError as error:
        print(family, error.errno)
"""
    refused = ["AF_VSOCK 1", "AF_ALG 1", "AF_PACKET 1"]
    there = [f"{family} is there" for family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK")]
    assert python(program) == (0, "\n".join([*there, *refused]) + "\n")
