"""A Ray cluster of one host, real processes all of it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from node.ports import free_port

RAY_VERSION = metadata.version("ray")


@contextmanager
def ray_cluster(
    *, gpus: int = 0, version: str = RAY_VERSION, env: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """Start a cluster that says it has so many GPUs, and is of that version; gives its address."""
    # Paths of sockets are short, and those of tests are not.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    port = free_port()
    options = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 2,
        "num-gpus": gpus,
        "object-store-memory": 80_000_000,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-c",
                f"import ray; ray.__version__ = {version!r}; from ray.scripts.scripts import main; main()",
                "start",
                "--head",
                "--block",
                "--disable-usage-stats",
            ),
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**env, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError(f"Ray did not start: {''.join(said)}")
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)
