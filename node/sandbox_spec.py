"""What runs in a sandbox, what it sees and what it may use, whichever kind of sandbox it is."""

import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from protocol.verdicts import Isolation

ENVIRONMENT: Final = {"HOME": "/tmp", "PATH": "/usr/bin:/bin", "USER": "nobody"}  # noqa: S108
"""USER, because no user database says inside who the unprivileged user is, and libraries ask."""


class SandboxTier(StrEnum):
    """How strong the isolation of this host is."""

    CGROUP = "bwrap+seccomp+rlimits+cgroup"
    BWRAP = "bwrap+seccomp+rlimits"
    LANDLOCK = "landlock+seccomp+rlimits"
    NONE = "none"

    def suffices(self, isolation: Isolation) -> bool:
        """True when it isolates at least so well."""
        weak = {
            Isolation.TO_SCORE: (SandboxTier.LANDLOCK, SandboxTier.NONE),
            Isolation.ANY: (SandboxTier.NONE,),
            Isolation.NONE: (),
        }
        return self not in weak[isolation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What each sandboxed process may use; `data_bytes` None leaves CUDA its huge private mappings.

    `memory_bytes`, where there is a cgroup (`SandboxTier.CGROUP`), holds for all processes together, and so
    does `processes` then.
    """

    memory_bytes: int | None = None
    data_bytes: int | None = 8 * 2**30
    file_bytes: int = 256 * 2**20
    processes: int = 512
    open_files: int = 512
    tmp_bytes: int = 1 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A host path that is readable inside under another path."""

    host: Path
    inside: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What runs in the sandbox and what it sees."""

    argv: Sequence[str]
    mounts: Sequence[Mount] = ()
    hidden: Sequence[Path] = ()
    """Folders inside, part of a mount, that show as empty."""
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[Path] = ()
    scratch: Path | None = None
    """Folder of the host that may be written where there is no private /tmp (`SandboxTier.LANDLOCK`)."""
    limits: Limits = field(default_factory=Limits)


def python_mounts() -> list[Mount]:
    """Return what the interpreter of this process needs inside: its base prefix and its site-packages."""
    prefix = Path(sys.base_prefix).resolve()
    # A prefix of /usr is in every sandbox already.
    mounts = [] if prefix == Path("/usr") else [Mount(host=prefix, inside=prefix)]
    paths = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return mounts + [
        Mount(host=path, inside=Path(f"/quasar/site{index}")) for index, path in enumerate(sorted(paths))
    ]


def python_argv(program: str, paths: Sequence[str], *arguments: str) -> list[str]:
    """Return the command that runs `program` text isolated, with `paths` in front of the module search path.

    The base interpreter is run: a virtual environment's link does not resolve inside.
    """
    interpreter = str(Path(sys.executable).resolve())
    return [
        interpreter,
        "-I",
        "-u",
        "-c",
        f"import sys; sys.path[:0] = {list(paths)!r}; {program}",
        *arguments,
    ]
