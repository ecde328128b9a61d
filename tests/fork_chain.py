"""A program of a few bytes: a process that forks and ends, whose child does the same, and so on."""

import struct
from pathlib import Path
from typing import Final

from node.sandbox_spec import Mount

_PLACE: Final = 0x400000
_HEADERS: Final = 64 + 56
_SIGCONT: Final = 18
_WAKE_NS: Final = 20_000_000


def chain_of_forks(*, wakes_itself: bool, says: bytes = b"") -> bytes:
    """Return it as an executable file for Linux on x86_64.

    Each link sends SIGCONT to all that it may, and writes `says` to its output. `wakes_itself`: it has the
    kernel send it SIGCONT 20 ms later, and again.
    """
    data = struct.pack("=QiiQ", 0, _SIGCONT, 0, 0).ljust(64, b"\0")  # struct sigevent
    data += struct.pack("=qqqq", 0, _WAKE_NS, 0, _WAKE_NS)  # struct itimerspec
    data += bytes(8)  # the timer
    event = _PLACE + _HEADERS
    times, timer, text = event + 64, event + 96, event + 104
    data += says
    link = b""
    if wakes_itself:
        link += _call(222, 1, event, timer)  # timer_create(CLOCK_MONOTONIC, ...)
        link += b"\xbb" + struct.pack("=I", timer) + b"\x8b\x3b"  # mov ebx, timer; mov edi, [rbx]
        link += b"\x45\x31\xd2" + _call(223, None, 0, times)  # xor r10d, r10d; timer_settime
        # mov ecx, a million; loop: about a millisecond, in which it can be hit with its timer set.
        link += b"\xb9" + struct.pack("=I", 1_000_000) + b"\xe2\xfe"
    if says:
        link += _call(1, 1, text, len(says))  # write
    link += _call(62, 0xFFFFFFFF, _SIGCONT)  # kill(-1, SIGCONT)
    link += _call(57)  # fork
    # test eax, eax; jle: the child goes on as the next link.
    link += b"\x85\xc0\x0f\x8e" + struct.pack("=i", -(len(link) + 8))
    link += _call(60, 0)  # exit
    size = _HEADERS + len(data) + len(link)
    entry = event + len(data)
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf += struct.pack("=HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("=IIQQQQQQ", 1, 7, 0, _PLACE, _PLACE, size, size, 0x1000)
    return elf + data + link


def mounted_chain(folder: Path, *, wakes_itself: bool) -> Mount:
    """Lay it out in a folder, as /data/link of a sandbox: each link writes a dot."""
    program = folder / "link"
    program.write_bytes(chain_of_forks(wakes_itself=wakes_itself, says=b"."))
    for path in (folder, program):
        path.chmod(0o755)
    return Mount(host=folder, inside=Path("/data"))


def _call(number: int, *arguments: int | None) -> bytes:
    """A system call with up to three arguments; None leaves a register as it is."""
    # mov edi / esi / edx / eax, number; syscall
    registers = (b"\xbf", b"\xbe", b"\xba")
    moves = [
        register + struct.pack("=I", argument)
        for register, argument in zip(registers, arguments, strict=False)
        if argument is not None
    ]
    return b"".join(moves) + b"\xb8" + struct.pack("=I", number) + b"\x0f\x05"
