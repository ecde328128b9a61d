"""The system calls that hostile code may not make: a filter that the kernel runs (seccomp(2), classic BPF).

A deny-list, because CUDA, Triton and Python need many calls, and what they need changes with every driver.
Namespaces, the empty environment and the unprivileged user hold without it; the filter takes away what has
led out of such sandboxes: other processes' memory, new namespaces and mounts, kernel programs, and rarely
used subsystems. memfd_create stays: CUDA needs it.
"""

import os
import platform
import struct
from collections.abc import Sequence
from typing import Final

from protocol.errors import SandboxUnavailable

_DENIED: Final = {
    # name: (x86_64, aarch64); the numbers from 424 on are the same everywhere.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
}
_DENIED_X86_ONLY: Final = {"iopl": 172, "ioperm": 173, "modify_ldt": 154}
_DENIED_TO_SAME_USER: Final = {
    # Signals to other processes.
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    # The sockets of other programs; networks: see _SOCKETS.
    "connect": (42, 203),
    # What Landlock lets an owner do to files that it keeps closed.
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "truncate": (76, 45),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    # Memory, semaphores and queues that processes share by name.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Other processes' priorities and memory.
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
"""Beside the others, where no namespaces and no user of its own keep code from the operator's processes."""
_DENIED_TO_SAME_USER_X86_ONLY: Final = {
    "chmod": 90,
    "chown": 92,
    "lchown": 94,
    "utime": 132,
    "utimes": 235,
    "futimesat": 261,
    "inotify_init": 253,
}
_ON_ITSELF_ONLY: Final = {
    # name: (x86_64, aarch64); the first argument is a process or a thread, 0 for the caller.
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
_SOCKETS: Final = ((41, 198), (53, 199))
"""socket and socketpair, left for local connections alone: CUDA listens on one in each process."""
_HELD_FAMILIES: Final = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: a network namespace holds them; AF_VSOCK leads out of it."""
_LOCAL, _STREAM, _PACKETS, _KIND_OF_SOCKET = 1, 1, 5, 0xF
_DENIED_COMMANDS: Final = {
    # name: (x86_64, aarch64), the commands (second argument): they have the kernel send signals, or type.
    "fcntl": ((72, 25), (8, 15)),  # F_SETOWN, F_SETOWN_EX
    "ioctl": ((16, 29), (0x8901, 0x8902, 0x5412)),  # FIOSETOWN, SIOCSPGRP, TIOCSTI
}
_CLONE: Final = (56, 220)
_CLONE3: Final = 435
_NEW_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET in the flags of clone."""

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine: column of the numbers, AUDIT_ARCH."""
_X32_BIT: Final = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
"""Of an argument the lower half: the kernel takes all that is compared here for an int."""
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38


def denied_calls(machine: str, *, is_same_user: bool = False) -> dict[str, int]:
    """Return name -> number of what is denied on a machine whatever its arguments.

    `is_same_user`: for code that runs as the operator's own user, without namespaces.
    Raises SandboxUnavailable for an unknown machine.
    """
    column, _ = _architecture(machine)
    pairs, x86_only = _DENIED, _DENIED_X86_ONLY
    if is_same_user:
        pairs, x86_only = pairs | _DENIED_TO_SAME_USER, x86_only | _DENIED_TO_SAME_USER_X86_ONLY
    numbers = {name: pair[column] for name, pair in pairs.items()}
    return numbers | (x86_only if machine == "x86_64" else {})


def filter_program(machine: str | None = None, *, same_user_pid: int | None = None) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    Denied calls fail with EPERM. clone3, whose flags a filter cannot see, fails with ENOSYS, so that libc
    falls back to clone. Calls of another architecture end the process. `same_user_pid` is the process that
    the filter is for when it runs as the operator's own user. Raises SandboxUnavailable.
    """
    machine = machine or platform.machine()
    column, architecture = _architecture(machine)
    program = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_JUMP_EQUAL, architecture, if_true=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        # The numbers of the x32 interface would pass by the list.
        program += _refusal(_JUMP_AT_LEAST, _X32_BIT, _ENOSYS)
    for number in sorted(denied_calls(machine, is_same_user=same_user_pid is not None).values()):
        program += _refusal(_JUMP_EQUAL, number, _EPERM)
    program += _refusal(_JUMP_EQUAL, _CLONE3, _ENOSYS)
    if same_user_pid is None:
        program += _only_with(_SOCKETS[0][column], _HELD_FAMILIES)
    else:
        for numbers in _ON_ITSELF_ONLY.values():
            program += _only_with(numbers[column], (0, same_user_pid))
        for numbers, commands in _DENIED_COMMANDS.values():
            program += _without(numbers[column], commands)
        for numbers in _SOCKETS:
            program += _only_local(numbers[column])
    program += [
        _instruction(_JUMP_EQUAL, _CLONE[column], if_false=3),
        _instruction(_LOAD, _FIRST_ARGUMENT_AT),
        *_refusal(_JUMP_ANY_BIT, _NEW_NAMESPACES, _EPERM),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def filter_descriptor() -> int:
    """Return a descriptor from which bubblewrap reads the filter (`--seccomp`); the caller closes it."""
    descriptor = os.memfd_create("quasar-seccomp")
    program = filter_program()
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _architecture(machine: str) -> tuple[int, int]:
    if machine not in _ARCHITECTURES:
        raise SandboxUnavailable(
            f"machine {machine!r} has no list of system calls here: use {' or '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[machine]


def _refusal(jump: int, value: int, error: int) -> list[bytes]:
    """Two instructions: return the error when the comparison holds, else go on after them."""
    return [_instruction(jump, value, if_false=1), _instruction(_RETURN, _ERRNO | error)]


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _only_with(number: int, allowed: Sequence[int]) -> list[bytes]:
    """Refuse a call whose first argument is none of `allowed`; other calls go on after it."""
    count = len(allowed)
    return [
        _instruction(_JUMP_EQUAL, number, if_false=count + 3),
        _instruction(_LOAD, _FIRST_ARGUMENT_AT),
        *(_instruction(_JUMP_EQUAL, value, if_true=count - index) for index, value in enumerate(allowed)),
        _instruction(_RETURN, _ERRNO | _EPERM),
        _instruction(_RETURN, _ALLOW),
    ]


def _without(number: int, commands: tuple[int, ...]) -> list[bytes]:
    """Refuse a call whose second argument is one of `commands`; other calls go on after it."""
    refusals = [part for command in commands for part in _refusal(_JUMP_EQUAL, command, _EPERM)]
    return [
        _instruction(_JUMP_EQUAL, number, if_false=len(refusals) + 2),
        _instruction(_LOAD, _SECOND_ARGUMENT_AT),
        *refusals,
        _instruction(_RETURN, _ALLOW),
    ]


def _only_local(number: int) -> list[bytes]:
    """Refuse sockets but local ones that have to be connected; other calls go on after it."""
    return [
        _instruction(_JUMP_EQUAL, number, if_false=8),
        _instruction(_LOAD, _FIRST_ARGUMENT_AT),
        _instruction(_JUMP_EQUAL, _LOCAL, if_false=4),
        _instruction(_LOAD, _SECOND_ARGUMENT_AT),
        _instruction(_AND, _KIND_OF_SOCKET),
        _instruction(_JUMP_EQUAL, _STREAM, if_true=2),
        _instruction(_JUMP_EQUAL, _PACKETS, if_true=1),
        _instruction(_RETURN, _ERRNO | _EPERM),
        _instruction(_RETURN, _ALLOW),
    ]
