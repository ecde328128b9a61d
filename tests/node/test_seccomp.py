"""The filter as bytes; what it does is tested in the sandbox."""

import platform
import struct

import pytest

from node.seccomp import denied_calls, filter_program
from protocol.errors import SandboxUnavailable


@pytest.mark.parametrize("same_user_pid", [None, 4321])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_lands_inside_and_the_end_is_permission(machine: str, same_user_pid: int | None) -> None:
    program = [*struct.iter_unpack("=HBBI", filter_program(machine, same_user_pid=same_user_pid))]
    for index, (code, if_true, if_false, _) in enumerate(program):
        if code & 0x07 == 0x05:
            assert index + 1 + max(if_true, if_false) < len(program)
    assert program[-1] == (0x06, 0, 0, 0x7FFF0000)
    assert len(program) < 4096
    values = [value for code, _, _, value in program if code == 0x15]
    denied = denied_calls(machine, is_same_user=same_user_pid is not None)
    assert set(denied.values()) <= set(values)
    assert len(set(denied.values())) == len(denied)
    assert (4321 in values) is (same_user_pid is not None)


def test_unknown_machine_is_named() -> None:
    with pytest.raises(SandboxUnavailable, match="'pdp11'"):
        filter_program("pdp11")


def test_this_machine_is_meant_by_default() -> None:
    assert filter_program() == filter_program(platform.machine())
