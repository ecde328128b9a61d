"""The process that `node.landlock` starts: it runs the program in a restricted child and ends what is left.

Nothing that the child starts can leave it: whoever loses its parent becomes a child of this process, which
ends them all when the program ends, when it is told to (SIGTERM), and when its own parent dies.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from node.landlock import CREATE_RULESET
from node.process_tree import signal_all, stop_descendants
from node.seccomp import filter_program

_ADD_RULE, _RESTRICT_SELF = CREATE_RULESET + 1, CREATE_RULESET + 2
_BENEATH: Final = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_OF_FIRST: Final = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
"""What a rule for something that is no folder may name."""
_TCP_BIND_AND_CONNECT: Final = 3
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 3

_SET_PARENT_DEATH_SIGNAL, _SET_SECCOMP, _SET_SUBREAPER, _NO_NEW_PRIVILEGES, _AMBIENT = 1, 22, 36, 38, 47
_FILTER_MODE, _CLEAR_ALL = 2, 4
_CANNOT_RUN: Final = 127
_REAP_INTERVAL_S: Final = 0.002

_libc = ctypes.CDLL(None, use_errno=True)


def main(order: str) -> NoReturn:
    """Run what `order` (JSON) says; exits with the program's code, or 128 and the signal that ended it."""
    told: dict[str, Any] = json.loads(order)
    parent = os.getppid()
    _prctl(_SET_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: _leave(128 + signal.SIGTERM))
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        _leave(128 + signal.SIGTERM)
    child = os.fork()
    if child == 0:
        _become(told)
    # Its rule for its own threads holds for what the kernel shows now: while this process has it open,
    # that is not thrown away and made anew.
    os.open(f"/proc/{child}/task", os.O_PATH | os.O_CLOEXEC)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            _leave(code if code >= 0 else 128 - code)


def _leave(code: int) -> NoReturn:
    """End all that descends from this process, and then itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    own = os.getpid()
    while stopped := stop_descendants(own):
        signal_all(stopped, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(_REAP_INTERVAL_S)
    os._exit(code)


def _become(told: dict[str, Any]) -> NoReturn:
    """Restrict this process and turn it into the program; exits with 127 when that is not possible."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        # When a swarm fills the memory, the kernel must end it, and not what watches over it.
        Path("/proc/self/oom_score_adj").write_text("1000")
        _prctl(_NO_NEW_PRIVILEGES, 1)
        _prctl(_AMBIENT, _CLEAR_ALL)
        _limit(told["limits"])
        _restrict_files(told)
        _filter_calls()
        os.execve(told["argv"][0], told["argv"], dict(os.environ))  # noqa: S606 - no shell is wanted
    except OSError as error:
        print(f"cannot run {told['argv'][0]} under Landlock: {error}", file=sys.stderr, flush=True)
    os._exit(_CANNOT_RUN)


def _limit(limits: dict[str, int | None]) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_DATA, limits["data_bytes"]),
    ):
        if value is not None:
            _, hard = resource.getrlimit(kind)
            lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (lowest, lowest))


def _restrict_files(told: dict[str, Any]) -> None:
    abi = told["abi"]
    files = _ALL_OF_FIRST | _REFER | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEVICE if abi >= 5 else 0)
    attributes = struct.pack("=Q", files)
    if abi >= 4:
        attributes += struct.pack("=Q", _TCP_BIND_AND_CONNECT)
    if abi >= 6:
        attributes += struct.pack("=Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    rights = {
        "listed": _READ_DIR,
        "read": _EXECUTE | _READ_FILE | _READ_DIR,
        "written": _READ_FILE | _WRITE_FILE | _IOCTL_DEVICE,
        "owned": files,
    }
    for name, wanted in rights.items():
        for path in told[name]:
            _allow(ruleset, path, wanted & files)
    # CUDA names its threads, and does not start where it may not.
    _allow(ruleset, f"/proc/{os.getpid()}/task", (_WRITE_FILE | _TRUNCATE) & files)
    _syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Add a rule for a path and all below it; what is not there needs none."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not Path(path).is_dir():
            rights &= _FILE_RIGHTS
        if rights:
            _syscall(_ADD_RULE, ruleset, _BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _filter_calls() -> None:
    program = filter_program(same_user_pid=os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, eight bytes each, and where they are.
    order = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _prctl(_SET_SECCOMP, _FILTER_MODE, order)


def _prctl(option: int, *arguments: Any) -> None:
    wide = [one if isinstance(one, bytes) else ctypes.c_ulong(one) for one in arguments]
    _check(_libc.prctl(option, *wide, *[ctypes.c_ulong(0)] * (4 - len(wide))))


def _syscall(number: int, *arguments: Any) -> int:
    return _check(_libc.syscall(number, *arguments))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno() or errno.EPERM
        raise OSError(code, os.strerror(code))
    return result
