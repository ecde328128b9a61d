"""Isolation without namespaces, for hosts that forbid them: Landlock, a stricter filter, and rlimits.

The code runs as the operator's own user. Landlock (landlock(7)) leaves it the files that it is given; what
an owner may do all the same (change modes, send signals, open sockets) the filter takes away. What it cannot
have without namespaces: processes of the host that are hidden, a /tmp with a quota, and limits that hold for
all its processes together. So its verdicts never score where there is a wallet to protect.
"""

import ctypes
import json
import os
import subprocess
from collections.abc import Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final

import node
from node.sandbox_spec import ENVIRONMENT, Mount, SandboxSpec, python_argv
from node.sandboxed_process import SandboxedProcess
from protocol.errors import SandboxUnavailable

MIN_ABI: Final = 2
"""Of Linux 5.19: the first whose rules let files be moved between folders, as Triton's cache does."""
CREATE_RULESET: Final = 444
"""The call's number, on every machine; the next two add a rule and restrict the caller."""
_VERSION_FLAG: Final = 1
_PROGRAM: Final = "from node.landlocked import main; main(sys.argv[1])"
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/proc")
_PLAIN_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def landlock_abi() -> int:
    """Return the version of Landlock's interface that this kernel has, 0 when it has none."""
    version = ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return max(0, int(version))


def start_landlocked(spec: SandboxSpec, *, pass_fds: Sequence[int], output: IO[bytes]) -> SandboxedProcess:
    """Start `spec` under Landlock; stdout and stderr go to `output`, stdin is empty.

    Every mount must be where it is on the host.

    Raises:
        SandboxUnavailable: this process is root's, or the kernel has no Landlock or too old a one.
    """
    if os.geteuid() == 0:
        raise SandboxUnavailable("Landlock alone does not hold root: run this as another user")
    if (abi := landlock_abi()) < MIN_ABI:
        raise SandboxUnavailable(
            f"this kernel's Landlock has version {abi}, and {MIN_ABI} is needed: Linux 5.19 or newer, "
            "with landlock among its security modules"
        )
    hidden = {path.resolve() for path in spec.hidden}
    roots = [*map(Path, _SYSTEM), *map(_on_host, spec.mounts), *([Path("/sys")] if spec.devices else [])]
    order = {
        "argv": list(spec.argv),
        "abi": abi,
        "limits": asdict(spec.limits),
        "listed": [str(root) for root in roots],
        "read": [str(path) for root in roots for path in _without(hidden, root.resolve())],
        "written": [*_PLAIN_DEVICES, *map(str, spec.devices)],
        "owned": [] if spec.scratch is None else [str(spec.scratch.resolve())],
    }
    process = subprocess.Popen(
        python_argv(_PROGRAM, [str(Path(node.__file__).parent.parent)], json.dumps(order)),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**ENVIRONMENT, **spec.environment},
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        cwd=spec.scratch or "/",
    )
    return SandboxedProcess(process, is_supervised=True)


def _on_host(mount: Mount) -> Path:
    if mount.host != mount.inside:
        raise ValueError(f"{mount.host} cannot be seen as {mount.inside} without a mount namespace")
    return mount.host.resolve()


def _without(hidden: Set[Path], root: Path) -> list[Path]:
    """What of `root` may be read, each with all below it: no rule takes back what another one gives."""
    if root in hidden:
        return []
    if not any(path.is_relative_to(root) for path in hidden):
        return [root]
    # Links need no rule: what they lead to has its own.
    parts = [path for path in sorted(root.iterdir()) if not path.is_symlink()]
    return [path for part in parts for path in _without(hidden, part)]
