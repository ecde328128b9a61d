"""Cgroups (v2) for sandboxes: limits on what all processes of one use together, which rlimits cannot give.

A cgroup that holds processes can have none with limits below it, so the node first moves, with all that it
has started, into a leaf of the cgroup that systemd has delegated to it (`Delegate=`). Root under pm2 or in a
shell, in a cgroup that others share, gets them below the root of the hierarchy.
"""

import contextlib
import errno
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.process_tree import family, start_time
from protocol.errors import CgroupUnavailable, SandboxUnavailable

CONTROLLERS: Final = ("memory", "pids")
WISHED_CONTROLLERS: Final = ("cpu",)
"""With the equal weights that it gives, hundreds of processes get no more of the CPU than the node. There is
no quota: the kernel would stop an honest worker for tenths of a second in the middle of a trial."""
LEAF: Final = "quasar-node"
PREFIX: Final = "quasar-sandbox-"
END_S: Final = 10.0
ENTER_S: Final = 30.0
FREEZE_S: Final = 5.0
_FREEZE: Final = "cgroup.freeze"
_MOVES: Final = 50
"""Times that processes started meanwhile are moved again."""
_DELEGATED: Final = ("user.delegate", "trusted.delegate")
"""Attributes by which systemd marks what is another's to manage."""
_UNIT_FIX: Final = (
    "start the node from deploy/systemd, whose unit says Delegate=, or one command with "
    "`systemd-run --scope -p Delegate=yes`"
)
_HOST_FIX: Final = "boot the host with systemd.unified_cgroup_hierarchy=1"
_CONTAINER_FIX: Final = "run the node on the host, or in a container that may write to its /sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where this process is in the hierarchy."""

    top: Path
    """The highest cgroup that can be seen."""
    own: Path


class Cgroup:
    """A cgroup whose limits hold for everything in it together."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: Path, *, memory_bytes: int, processes: int) -> "Cgroup":
        """Make one below `parent` (see `find_parent`), and remove those whose makers were killed.

        Raises:
            SandboxUnavailable: the kernel refuses it.
        """
        remove_leftovers(parent)
        cgroup = cls(parent / f"{PREFIX}{_maker(os.getpid())}-{secrets.token_hex(4)}")
        try:
            cgroup.path.mkdir()
            cgroup._limit(memory_bytes, processes)
        except OSError as error:
            cgroup.remove()
            raise SandboxUnavailable(f"cgroup {cgroup.path} cannot be made: {error}") from error
        return cgroup

    def _limit(self, memory_bytes: int, processes: int) -> None:
        _write(self.path / "memory.max", str(memory_bytes))
        # Half a sandbox could not go on: all of it ends, and is known to have.
        _write(self.path / "memory.oom.group", "1")
        _write(self.path / "pids.max", str(processes))
        # Not there without swap accounting; then there is nothing to limit it with.
        with contextlib.suppress(FileNotFoundError):
            _write(self.path / "memory.swap.max", "0")

    def entering(self, argv: Sequence[str]) -> list[str]:
        """The command that enters the cgroup and becomes `argv`: nothing that it starts is ever outside."""
        enter = 'echo 0 > "$1" && shift && exec "$@"'
        return ["sh", "-c", enter, "sh", str(self.path / "cgroup.procs"), *argv]

    def await_entry(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a process that was started by `entering` is inside. Raises SandboxUnavailable."""
        deadline = time.monotonic() + ENTER_S
        while process.pid not in _members(self.path) and process.poll() is None:
            if time.monotonic() > deadline:
                raise SandboxUnavailable(f"process {process.pid} did not enter cgroup {self.path}")
            time.sleep(0.0005)
        if not self._was_used():
            raise SandboxUnavailable(f"cgroup {self.path} cannot be entered: its process ended")

    def _was_used(self) -> bool:
        """True when a process has been inside: it has used time of a CPU, however short it was."""
        return bool(_members(self.path)) or _numbers(self.path / "cpu.stat").get("usage_usec", 0) > 0

    @property
    def has_exceeded_memory(self) -> bool:
        """True when the kernel ended processes because all together wanted more than `memory_bytes`."""
        events = _numbers(self.path / "memory.events")
        return events.get("oom", 0) > 0 and events.get("oom_kill", 0) > 0

    @property
    def was_sacrificed(self) -> bool:
        """True when the kernel ended processes for memory that others wanted: the limit was not reached."""
        events = _numbers(self.path / "memory.events")
        return events.get("oom", 0) == 0 and events.get("oom_kill", 0) > 0

    @property
    def can_freeze(self) -> bool:
        """Kernels before 5.2 cannot."""
        return (self.path / _FREEZE).exists()

    def freeze(self) -> None:
        """Let nothing inside run, whatever signals it gets, until `thaw`.

        What waits in a driver is waited for, but not for long: it runs none of its own code either.
        """
        _write(self.path / _FREEZE, "1")
        deadline = time.monotonic() + FREEZE_S
        while not _numbers(self.path / "cgroup.events").get("frozen") and time.monotonic() < deadline:
            time.sleep(0.0005)

    def thaw(self) -> None:
        """Let it go on."""
        _write(self.path / _FREEZE, "0")

    def kill(self) -> None:
        """End everything inside."""
        # Kernels before 5.14 lack it: there the end of the process namespace has to do.
        with contextlib.suppress(FileNotFoundError):
            _write(self.path / "cgroup.kill", "1")

    def remove(self) -> None:
        """Remove it as soon as it is empty.

        What does not end in END_S hangs in a driver; the cgroup is left to the next `remove_leftovers`.
        """
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(0.001)
            else:
                return


def remove_leftovers(parent: Path) -> None:
    """End and remove the sandboxes' cgroups whose maker was killed.

    Those of makers in other namespaces of processes stay: from here nobody can tell whether they live.
    """
    for path in parent.glob(f"{PREFIX}{_pid_namespace()}-*"):
        pid = path.name.removeprefix(PREFIX).split("-")[1]
        if not path.name.startswith(f"{PREFIX}{_maker(int(pid))}-"):
            leftover = Cgroup(path)
            leftover.kill()
            leftover.remove()


def make_room() -> None:
    """Move this process and all that it started into a leaf of its cgroup, if that is its own to arrange.

    Nothing happens where it is not: `find_parent` says why.
    """
    try:
        place = _place()
    except CgroupUnavailable:
        return
    own = place.own
    if own.name == LEAF or not _is_delegated(place) or not _has_controllers(own / "cgroup.controllers"):
        return
    leaf = own / LEAF
    for _ in range(_MOVES):
        members = _members(own)
        if not members <= family(os.getpid()):
            return
        leaf.mkdir(exist_ok=True)
        for pid in members:
            # It may have ended meanwhile.
            with contextlib.suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", str(pid))
        with contextlib.suppress(OSError):
            _enable(own)
            return


def find_parent() -> Path:
    """Return the cgroup below which sandboxes get theirs.

    Raises:
        CgroupUnavailable: there is none, with the reason and what to do.
    """
    place = _place()
    if not _has_controllers(place.top / "cgroup.controllers"):
        raise CgroupUnavailable(f"cgroup v2 has no {' and '.join(CONTROLLERS)} controllers here", _HOST_FIX)
    if os.statvfs(place.top).f_flag & os.ST_RDONLY:
        raise CgroupUnavailable(f"{place.top} is read-only", _CONTAINER_FIX)
    parent = place.own.parent
    has_room = place.own.name == LEAF and _has_controllers(parent / "cgroup.subtree_control")
    if has_room and os.access(parent, os.W_OK):
        return parent
    if os.geteuid() == 0 and _is_root_of_hierarchy(place.top):
        try:
            _enable(place.top)
        except OSError as error:
            reason = f"{place.top} refuses controllers: {error.strerror}"
            raise CgroupUnavailable(reason, _HOST_FIX) from error
        return place.top
    raise CgroupUnavailable(f"cgroup {place.own} is not this node's own", _UNIT_FIX)


def _place() -> _Place:
    own = next(
        (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")),
        None,
    )
    if own is not None:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, system = line.partition(" - ")
            root, point = mount.split()[3:5]
            # A mount of a part of the hierarchy shows what is below its root alone.
            if system.split()[0] == "cgroup2" and Path(own).is_relative_to(root) and ".." not in own:
                top = Path(point)
                return _Place(top, top / Path(own).relative_to(root))
    raise CgroupUnavailable("cgroup v2 is not mounted", _HOST_FIX)


def _is_delegated(place: _Place) -> bool:
    """True when the cgroup is there for this process to arrange.

    Whoever is not root may write to no other; root may write everywhere, and goes by what systemd says, or by
    the namespace of a container, whose highest cgroup is the container's own.
    """
    if not (os.access(place.own, os.W_OK) and os.access(place.own / "cgroup.procs", os.W_OK)):
        return False
    if _is_root_of_hierarchy(place.own):
        return False
    return (
        os.geteuid() != 0
        or place.own == place.top
        or any(_is_marked(place.own, attribute) for attribute in _DELEGATED)
    )


def _is_marked(cgroup: Path, attribute: str) -> bool:
    try:
        return os.getxattr(cgroup, attribute) == b"1"
    except OSError:
        return False


def _is_root_of_hierarchy(cgroup: Path) -> bool:
    """True for the host's own, the one that may hold processes beside limited cgroups."""
    return not (cgroup / "cgroup.events").exists()


def _has_controllers(file: Path) -> bool:
    return set(CONTROLLERS) <= set(file.read_text().split())


def _enable(cgroup: Path) -> None:
    """Let cgroups below have limits. Raises OSError: a process is in this one, or it may not be written."""
    enabled = (cgroup / "cgroup.subtree_control").read_text().split()
    available = (cgroup / "cgroup.controllers").read_text().split()
    wanted = [*CONTROLLERS, *(name for name in WISHED_CONTROLLERS if name in available)]
    missing = [name for name in wanted if name not in enabled]
    if missing:
        _write(cgroup / "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))


def _maker(pid: int) -> str:
    """What no other process is called, on this machine and in its containers."""
    return f"{_pid_namespace()}-{pid}-{start_time(pid)}"


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _members(cgroup: Path) -> set[int]:
    return {int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()}


def _numbers(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in file.read_text().splitlines())
    return {name: int(value) for name, value in pairs}


def _write(file: Path, text: str) -> None:
    # Never made: a file that is not there is one that this kernel does not have.
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
