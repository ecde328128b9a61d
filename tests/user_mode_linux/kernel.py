"""Runs tests on a kernel of their own: user-mode Linux, a process, with this machine's files.

Hosts of tests often have cgroup v1, or a container that may not write cgroups; this kernel has cgroup v2 with
every controller, and tests are root in it. It sees the host's files, read-only, with its own /tmp and /run.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.requirements import missing

ROOT: Final = Path(__file__).parents[2]
KERNEL: Final = "linux.uml"
COVERED: Final = ("/tmp", "/root", "/home")
MEMORY_MB: Final = 3072
DONE: Final = "tests ended with code"
INIT: Final = """\
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 CI="{ci}"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
# Private homes are opened, for tests that give up being root; what lies in them and is needed stays, part by
# part where it is private itself.
for kept in {kept}; do mkdir -p "/run/kept$kept"; mount --bind "$kept" "/run/kept$kept"; done
for covered in {covered}; do mount -t tmpfs -o mode=1777 tmpfs "$covered"; done
shopt -s dotglob nullglob
for kept in {kept}; do
    mkdir -p "$kept"
    if [ "$(find "/run/kept$kept" -maxdepth 0 -perm -005)" ]; then
        mount --bind "/run/kept$kept" "$kept"
        continue
    fi
    for part in "/run/kept$kept"/*; do
        there="$kept/${{part##*/}}"
        if [ -d "$part" ]; then mkdir "$there"; else : > "$there"; fi
        mount --bind "$part" "$there"
    done
done
cd {root}
# Plugins that these tests do not need take seconds to import here.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
{python} -m pytest {tests} -p pytest_asyncio.plugin -p pytest_timeout -p no:cacheprovider --color=no
echo "{done} $?"
echo o > /proc/sysrq-trigger
sleep 60
"""


def run_inside(*tests: str, folder: Path, timeout_s: float) -> None:
    """Run pytest on `tests` in a kernel of their own; fails with their output. Skips where there is none."""
    if platform.machine() != "x86_64":
        pytest.skip("user-mode Linux is for x86_64 alone")
    if shutil.which(KERNEL) is None:
        missing("needs user-mode Linux (Debian: apt-get install user-mode-linux)")
    init = folder / "init.sh"
    needed = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    inner = {path for path in needed if any(path.is_relative_to(other) for other in needed - {path})}
    kept = sorted(
        str(path) for path in needed - inner if any(path.is_relative_to(folder) for folder in COVERED)
    )
    init.write_text(
        INIT.format(
            root=ROOT,
            python=sys.executable,
            tests=" ".join(tests),
            done=DONE,
            ci=os.environ.get("CI", ""),
            kept=" ".join(kept),
            covered=" ".join(COVERED),
        )
    )
    init.chmod(0o755)
    console = ("con=null", "con0=null,fd:1", "con1=null,fd:1", "console=tty0", "loglevel=1")
    process = subprocess.Popen(
        [KERNEL, "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", f"mem={MEMORY_MB}M", *console],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=timeout_s)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0].decode(errors="replace")
    assert f"{DONE} 0" in output, output[-20_000:]
