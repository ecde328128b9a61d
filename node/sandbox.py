"""Isolation for hostile code: bubblewrap with new namespaces, an empty environment and an unprivileged user.

What each step is for was found by attacking it: bwrap's own environment would show in /proc/1/environ, so
it starts with none; the root file system is remounted read-only last; as root, bwrap's --uid is still the
real uid 0, so the process drops to an unprivileged user first, and what that user could not read (an
interpreter under a private home) is bind-mounted on a readable staging folder in a mount namespace of its
own. Inside, a filter of system calls (`node.seccomp`) takes away what has led out of such sandboxes.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from node.cgroups import Cgroup, find_parent, make_room
from node.landlock import start_landlocked
from node.sandbox_spec import ENVIRONMENT, Limits, SandboxSpec, SandboxTier
from node.sandboxed_process import SandboxedProcess
from node.seccomp import filter_descriptor
from protocol.errors import SandboxUnavailable

UNPRIVILEGED_ID: Final = 65534
PROBE_TIMEOUT_S: Final = 20.0
PROBE_MEMORY_BYTES: Final = 256 * 2**20
STAGES: Final = Path("/tmp")  # noqa: S108
"""Not TMPDIR: an unprivileged user must be able to walk to it."""
STAGE_PREFIX: Final = "quasar-stage-"
OLD_STAGE_S: Final = 24 * 3600.0
"""No sandbox lives that long; in use, a stage looks empty from outside all the same."""

_STAGE_SCRIPT: Final = """\
set -e
stage=$1; shift
mount -t tmpfs -o mode=0755,size=1m tmpfs "$stage"
index=0
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir "$stage/$index"; else : > "$stage/$index"; fi
    mount --bind "$1" "$stage/$index"
    index=$((index + 1)); shift
done
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs -- "$@"
"""
_SACRIFICE_SCRIPT: Final = 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"'
"""Without a cgroup limits are per process: when a swarm of them fills the memory, the kernel must end it, not
the node. Set before anything else starts, which inherits it; afterwards a bwrap that is set-uid, and so
root's, could not be marked."""


def start_sandboxed(spec: SandboxSpec, *, pass_fds: Sequence[int], output: IO[bytes]) -> SandboxedProcess:
    """Start `spec` in the sandbox; stdout and stderr go to `output`, stdin is empty.

    Raises:
        SandboxUnavailable: bubblewrap, or as root unshare or setpriv, is missing, or a cgroup is asked for
            (`memory_bytes`) and cannot be had.
    """
    _require("bwrap", "prlimit")
    limits, cgroup = spec.limits, None
    if limits.memory_bytes is not None:
        cgroup = Cgroup.create(find_parent(), memory_bytes=limits.memory_bytes, processes=limits.processes)
    filter_fd = filter_descriptor()
    try:
        return _start_filtered(spec, filter_fd, cgroup, pass_fds=pass_fds, output=output)
    except BaseException:
        if cgroup is not None:
            cgroup.remove()
        raise
    finally:
        os.close(filter_fd)


def _start_filtered(
    spec: SandboxSpec, filter_fd: int, cgroup: Cgroup | None, *, pass_fds: Sequence[int], output: IO[bytes]
) -> SandboxedProcess:
    stage: Path | None = None
    if os.geteuid() == 0:
        _require("unshare", "setpriv", "mount")
        remove_old_stages(STAGES)
        stage = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=STAGES))
        stage.chmod(0o755)
        sources = [stage / str(index) for index in range(len(spec.mounts))]
        argv = [
            "unshare", "--mount", "--propagation", "private", "--",
            "sh", "-c", _STAGE_SCRIPT, "sh", str(stage),
            *(str(mount.host.resolve()) for mount in spec.mounts), "--",
            *_bwrap_command(spec, sources, filter_fd),
        ]  # fmt: skip
    else:
        argv = _bwrap_command(spec, [mount.host.resolve() for mount in spec.mounts], filter_fd)
    argv = ["sh", "-c", _SACRIFICE_SCRIPT, "sh", *argv]
    if cgroup is not None:
        argv = cgroup.entering(argv)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", os.defpath)} if os.geteuid() == 0 else {},
        executable=shutil.which(argv[0]),
        close_fds=True,
        pass_fds=(*pass_fds, filter_fd),
        start_new_session=True,
        cwd="/",
    )
    sandboxed = SandboxedProcess(process, stage, cgroup)
    if cgroup is not None:
        try:
            cgroup.await_entry(process)
        except BaseException:
            sandboxed.kill()
            raise
    return sandboxed


def remove_old_stages(folder: Path) -> None:
    """Remove the staging folders of sandboxes whose starter was killed; they are empty."""
    for stage in folder.glob(f"{STAGE_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - stage.stat().st_mtime > OLD_STAGE_S:
                stage.rmdir()


def start_unsandboxed(spec: SandboxSpec, *, pass_fds: Sequence[int], output: IO[bytes]) -> SandboxedProcess:
    """Start `spec` with an empty environment and nothing else between it and the host.

    For our own code, and on the local chain. It ends with the thread that starts it.

    Raises:
        SandboxUnavailable: setpriv is missing.
    """
    _require("setpriv")
    process = subprocess.Popen(
        # Stopped between its trials it would not see that nobody is there any more, and stay for ever.
        [_absolute("setpriv"), "--pdeathsig", "KILL", "--", *spec.argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(spec.environment),
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        cwd="/",
    )
    return SandboxedProcess(process)


def _require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise SandboxUnavailable(
                f"{program} is missing, and hostile code runs only in a sandbox: "
                "apt-get install bubblewrap util-linux"
            )


def _bwrap_command(spec: SandboxSpec, sources: Sequence[Path], filter_fd: int) -> list[str]:
    command = [
        _absolute("env"), "-i", _absolute("prlimit"), *_limit_flags(spec.limits), "--",
        _absolute("bwrap"),
        "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--seccomp", str(filter_fd), "--hostname", "sandbox", "--clearenv",
        "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    for name in ("lib", "lib64", "bin", "sbin"):
        root = Path("/") / name
        if root.is_symlink():
            command += ["--symlink", str(root.readlink()), str(root)]
        elif root.exists():
            command += ["--ro-bind", str(root), str(root)]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    # --size applies to the tmpfs that follows it.
    command += ["--size", str(spec.limits.tmp_bytes), "--tmpfs", "/tmp"]  # noqa: S108
    command += ["--size", str(spec.limits.tmp_bytes), "--tmpfs", "/dev/shm"]  # noqa: S108
    for source, mount in zip(sources, spec.mounts, strict=True):
        command += ["--ro-bind", str(source), str(mount.inside)]
    for folder in spec.hidden:
        command += ["--tmpfs", str(folder), "--remount-ro", str(folder)]
    if spec.devices:
        command += ["--ro-bind", "/sys", "/sys"]
    for device in spec.devices:
        command += ["--dev-bind-try", str(device), str(device)]
    for name, value in {**ENVIRONMENT, **spec.environment}.items():
        command += ["--setenv", name, value]
    command += ["--chdir", "/tmp", "--remount-ro", "/", "--"]  # noqa: S108
    if spec.limits.memory_bytes is None:
        # Set inside, where the kernel counts for each user namespace (Linux 5.14): set outside it would count
        # what all sandboxes of a user run, and one that is full would let no other start.
        command += [_absolute("prlimit"), f"--nproc={spec.limits.processes}", "--"]
    return [*command, *spec.argv]


def _absolute(program: str) -> str:
    return shutil.which(program) or f"/usr/bin/{program}"


def _limit_flags(limits: Limits) -> list[str]:
    flags = [
        "--core=0",
        f"--fsize={limits.file_bytes}",
        f"--nofile={limits.open_files}",
    ]
    if limits.data_bytes is not None:
        flags.append(f"--data={limits.data_bytes}")
    return flags


@functools.cache
def detect_tier() -> SandboxTier:
    """Return the tier that this process really gets, found by starting a sandbox once (see `make_room`)."""
    make_room()
    if _starts(start_sandboxed, Limits(memory_bytes=PROBE_MEMORY_BYTES)):
        return SandboxTier.CGROUP
    if _starts(start_sandboxed, Limits()):
        return SandboxTier.BWRAP
    return SandboxTier.LANDLOCK if _starts(start_landlocked, Limits()) else SandboxTier.NONE


def _starts(start: Callable[..., SandboxedProcess], limits: Limits) -> bool:
    with tempfile.TemporaryFile() as output:
        spec = SandboxSpec(argv=["/bin/true"], limits=limits)
        try:
            process = start(spec, pass_fds=(), output=output)
        except (SandboxUnavailable, OSError):
            return False
        code = process.wait(PROBE_TIMEOUT_S)
        process.kill()
    return code == 0
