"""The sandbox without namespaces, attacked from inside by programs of the operator's own user."""

import errno
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.landlock import MIN_ABI, landlock_abi, start_landlocked
from node.sandbox_spec import SandboxSpec, python_argv
from node.seccomp import denied_calls
from protocol.errors import SandboxUnavailable
from tests.ordinary_user import as_ordinary_user
from tests.processes import command_lines
from tests.requirements import missing
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def landlock() -> None:
    """Skips where the kernel has none."""
    if landlock_abi() < MIN_ABI:
        missing(f"this kernel's Landlock has version {landlock_abi()}, and {MIN_ABI} is needed")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The one folder that the program may write."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def driver(scratch: Path, argv: list[str], **options: Any) -> list[str]:
    """The command that starts a program under Landlock."""
    told = {"argv": argv, "scratch": str(scratch), "mode": "run", "readable": [], "hidden": [], "limits": {}}
    order = json.dumps(told | options)
    return as_ordinary_user([sys.executable, "-m", "tests.node.landlock_driver", order])


def run_inside(scratch: Path, argv: list[str], **options: Any) -> tuple[int, str]:
    """Run a program under Landlock; returns its exit code and its output."""
    done = subprocess.run(
        driver(scratch, argv, **options), capture_output=True, text=True, cwd=ROOT, timeout=100, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def shell(scratch: Path, script: str, **options: Any) -> tuple[int, str]:
    """Run a shell script under Landlock."""
    return run_inside(scratch, ["/bin/sh", "-c", script], **options)


def python(scratch: Path, program: str, **options: Any) -> tuple[int, str]:
    """Run a Python program under Landlock."""
    return run_inside(scratch, python_argv(program, []), readable=[sys.base_prefix], **options)


def attempts(*expressions: str) -> str:
    """A program that prints what became of each expression: its error's number, or WORKED and its value."""
    return (
        "import fcntl, os, resource, signal, socket\n"
        f"for text in {expressions!r}:\n"
        "    try:\n"
        "        print('WORKED', text, eval(text))\n"
        "    except OSError as error:\n"
        "        print('FAILED', error.errno)\n"
    )


def assert_refused(scratch: Path, *expressions: str) -> None:
    """None of the expressions works inside, and nothing else goes wrong."""
    code, output = python(scratch, attempts(*expressions))
    assert code == 0, output
    assert "WORKED" not in output
    assert output.count("FAILED") == len(expressions)


def test_it_is_an_ordinary_process_with_nothing_to_inherit(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_very_secret")
    script = "env; ls /proc/self/fd | xargs echo fds; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status"
    code, output = shell(scratch, script)
    assert code == 0, output
    assert "ghp_very_secret" not in output
    names = {line.split("=")[0] for line in output.splitlines() if "=" in line}
    assert names <= {"HOME", "LC_CTYPE", "PATH", "PWD", "TMPDIR", "USER"}
    assert {"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} <= {*output.splitlines()}
    # The fourth is the folder that ls reads.
    assert "fds 0 1 2 3" in output.splitlines()


def test_files_of_the_operator_stay_closed_and_as_they_are(scratch: Path, tmp_path: Path) -> None:
    secret = tmp_path / "hotkey"
    secret.write_text("mnemonic")
    secret.chmod(0o640)
    before = secret.stat()
    path = str(secret)
    assert_refused(
        scratch,
        f"open({path!r}).read()",
        f"open({path!r}, 'a')",
        f"os.truncate({path!r}, 0)",
        f"os.chmod({path!r}, 0o666)",
        f"os.chown({path!r}, -1, os.getgid())",
        f"os.utime({path!r})",
        f"os.setxattr({path!r}, 'user.mark', b'1')",
        f"os.unlink({path!r})",
        f"os.rename({path!r}, 'mine')",
        f"os.link({path!r}, 'mine')",
        f"os.listdir({str(tmp_path)!r})",
        f"os.mkdir({str(tmp_path / 'new')!r})",
        "os.listdir('/')",
        "open('/etc/passwd').read()",
        "open('/dev/tty')",
        "open('/dev/shm/shared', 'w')",
        "open('/tmp/left', 'w')",
        "open(os.__file__, 'a')",
    )
    assert secret.read_text() == "mnemonic"
    after = secret.stat()
    for field in ("st_mode", "st_uid", "st_gid", "st_nlink", "st_mtime_ns", "st_ctime_ns"):
        assert getattr(after, field) == getattr(before, field), field


def test_its_own_folder_can_be_written_and_moved_about_in(scratch: Path) -> None:
    code, output = shell(scratch, 'mkdir a b; echo x > a/f; mv a/f b/g; cat b/g; rm -r a; cd "$TMPDIR"; ls')
    assert (code, output) == (0, "x\nb\n")


def test_what_is_hidden_in_a_mount_is_closed(scratch: Path, tmp_path: Path) -> None:
    """However deep it lies, and also where another mount shows it."""
    prefix = tmp_path / "prefix"
    site = prefix / "lib" / "site"
    for name in ("shown", "hidden"):
        (site / name).mkdir(parents=True)
        (site / name / "code").write_text(name)
    script = f"cat {site}/shown/code; ls {site}; cat {site}/hidden/code; echo x > {site}/new"
    readable = [str(prefix), str(site)]
    _, output = shell(scratch, script, readable=readable, hidden=[str(site / "hidden")])
    assert output.startswith("shownhidden\nshown\n")
    assert output.count("Permission denied") == 2
    assert not (site / "new").exists()


def test_sockets_lead_nowhere(scratch: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent"))
        listener.listen()
        code, output = python(
            scratch,
            attempts(
                "socket.socket(socket.AF_INET)",
                "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
                "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
                "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
                "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
                f"socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'agent')!r})",
            )
            # What CUDA does in each process.
            + "local = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "local.bind(f'\\0quasar-{os.getpid()}'); local.listen()\n"
            "a, b = socket.socketpair(); a.send(b'pair'); print(b.recv(4).decode())\n",
        )
    assert (code, output) == (0, f"FAILED {errno.EPERM}\n" * 6 + "pair\n")


def test_the_process_that_watches_over_it_cannot_be_touched_or_read(scratch: Path) -> None:
    """It has the same user, and no namespace lies between."""
    assert_refused(
        scratch,
        "os.kill(os.getppid(), signal.SIGKILL)",
        "os.kill(-1, signal.SIGKILL)",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "os.sched_setaffinity(os.getppid(), [0])",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "open(f'/proc/{os.getppid()}/environ').read()",
        "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
        "open(f'/proc/{os.getppid()}/oom_score_adj', 'w')",
        "open(f'/proc/{os.getppid()}/task/{os.getppid()}/oom_score_adj', 'w')",
        "open('/proc/self/oom_score_adj', 'w')",
        "os.readlink(f'/proc/{os.getppid()}/cwd')",
        "open(f'/proc/{os.getppid()}/fd/1', 'w')",
    )


def test_calls_that_would_reach_out_are_refused(scratch: Path) -> None:
    calls = denied_calls(platform.machine(), is_same_user=True)
    program = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {calls!r}.items():\n"
        "    if libc.syscall(number, -1, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:\n"
        "        print(name, ctypes.get_errno())\n"
    )
    assert python(scratch, program) == (0, "")


def test_what_programs_do_with_themselves_still_works(scratch: Path) -> None:
    code, output = python(
        scratch,
        "import fcntl, os, resource, signal, subprocess, threading\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "print(subprocess.run(['/bin/echo', 'process'], capture_output=True, text=True).stdout.strip())\n"
        "os.sched_setaffinity(0, os.sched_getaffinity(0))\n"
        "resource.prlimit(os.getpid(), resource.RLIMIT_CORE)\n"
        "fcntl.fcntl(1, fcntl.F_SETFD, 0)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('signal'))\n"
        "signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)\n"
        # As CUDA names its threads; without that it does not start.
        "name = f'/proc/self/task/{threading.get_native_id()}/comm'\n"
        "os.write(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), b'named'); print(open(name).read())\n"
        "os.abort()\n",
    )
    assert (code, output.split()) == (128 + signal.SIGABRT, ["thread", "process", "signal", "named"])


@pytest.mark.parametrize(("script", "expected"), [("exit 7", 7), ("ulimit -c 0; kill -9 $$ || exit 8", 8)])
def test_the_exit_code_is_the_programs(script: str, expected: int, scratch: Path) -> None:
    assert shell(scratch, script)[0] == expected


def test_a_program_that_is_not_there_is_named(scratch: Path) -> None:
    code, output = run_inside(scratch, ["/usr/bin/no-such-program"])
    assert code == 127
    assert "/usr/bin/no-such-program" in output


def test_limits_hold(scratch: Path) -> None:
    limits = {"file_bytes": 1_000_000, "data_bytes": 512 * 2**20, "processes": 321, "open_files": 99}
    program = (
        "import resource as r\n"
        "print(*(r.getrlimit(kind) for kind in (r.RLIMIT_NPROC, r.RLIMIT_NOFILE, r.RLIMIT_CORE)))\n"
        "try:\n"
        "    open('big', 'wb').write(bytes(2_000_000))\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
        "bytearray(2 * 2**30)\n"
    )
    code, output = python(scratch, program, limits=limits)
    assert code == 1
    assert output.startswith("(321, 321) (99, 99) (0, 0)\nFile too large\n")
    assert "MemoryError" in output
    assert (scratch / "big").stat().st_size == 1_000_000


DAEMONS = "(setsid sh -c 'setsid sleep {0} & sleep {0}' &) ; sleep 0.3"


def is_running(seconds: int) -> bool:
    """True when a process sleeps for exactly that long."""
    return f"sleep\0{seconds}\0".encode() in command_lines().values()


def test_daemons_end_with_the_program(scratch: Path) -> None:
    script = DAEMONS.format(86402) + "; echo started; exit 3"
    assert shell(scratch, script) == (3, "started\n")
    assert not is_running(86402)


@pytest.mark.parametrize("mode", ["kill", "pause"])
def test_a_kill_ends_all_even_what_is_paused(mode: str, scratch: Path) -> None:
    script = DAEMONS.format(86403) + "; (while :; do echo tick; sleep 0.01; done) & echo ready; sleep 86403"
    assert run_inside(scratch, ["/bin/sh", "-c", script], mode=mode) == (0, "ready\n")
    assert not is_running(86403)


def test_all_ends_when_who_started_it_is_killed(scratch: Path) -> None:
    script = DAEMONS.format(86404) + "; echo ready; sleep 86404"
    starter = subprocess.Popen(
        driver(scratch, ["/bin/sh", "-c", script], mode="wait"), stdout=subprocess.PIPE, cwd=ROOT
    )
    assert starter.stdout is not None
    with starter.stdout:
        assert starter.stdout.readline() == b"ready\n"
        until(lambda: is_running(86404), lambda: "it does not sleep")
        starter.kill()
        starter.wait()
    until(lambda: not is_running(86404), lambda: "it still sleeps", timeout_s=20.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="for root")
def test_root_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="run this as another user"):
        start_landlocked(SandboxSpec(argv=["/bin/true"]), pass_fds=(), output=sys.stdout.buffer)
