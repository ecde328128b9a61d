"""Child processes in a group of their own: started with a chosen environment, ended whole, always reaped."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from subprocess import Popen
from typing import IO

from node.logs import get_logger
from node.worker_main import PARENT_VARIABLE
from protocol.errors import WorkerFailed

MAX_LINE_CHARS = 4096
CHUNK_BYTES = 65_536
REAP_TIMEOUT_S = 10.0
PASSED_VARIABLES = frozenset(
    (
        *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
        *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "TORCH_HOME"),
        *("TRITON_INTERPRET", "TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_PTXAS_PATH", "TRITON_LIBCUDA_PATH"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_OFFLINE"),
        *("TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE"),
        *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"),
    )
)
"""What a child may inherit: nothing that holds a secret (HF_TOKEN, proxies with passwords do not pass)."""
ALLOC_CONF = "expandable_segments:True"

LineSink = Callable[[str], None]
"""Takes one line that a child wrote on stderr."""

_log = get_logger(__name__)


def worker_environment(
    extra: Mapping[str, str] | None = None, *, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a child: allowed variables of `base`, then `extra`, then what every child gets."""
    env = {name: value for name, value in base.items() if name in PASSED_VARIABLES or name.startswith("LC_")}
    if "PYTORCH_ALLOC_CONF" not in env:
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", ALLOC_CONF)
    env |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    return env | dict(extra or {})


async def start_process(argv: Sequence[str], env: Mapping[str, str], *, line_limit_bytes: int) -> Process:
    """Start a child with pipes in its own session and process group; WorkerFailed when it cannot start."""
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={**env, PARENT_VARIABLE: str(os.getpid())},
            limit=line_limit_bytes,
            start_new_session=True,
        )
    except OSError as error:
        raise WorkerFailed(f"process {argv[0]} cannot be started: {error.strerror}") from error


def kill_group(process: "Process | Popen[bytes]") -> None:
    """SIGKILL the child and everything that it started in its group; harmless when all are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def end_process(process: Process, *, patience_s: float = 0.0) -> int:
    """Close the child's stdin, give it `patience_s` to leave, kill its group; returns its exit code, reaped.

    Runs to its end even when the caller is cancelled meanwhile.
    """
    ending = asyncio.ensure_future(_end(process, patience_s))
    try:
        return await asyncio.shield(ending)
    except asyncio.CancelledError:
        kill_group(process)
        await asyncio.wait({ending})
        raise


async def _end(process: Process, patience_s: float) -> int:
    if process.stdin is not None:
        process.stdin.close()
    if patience_s > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await wait_for_exit(process)
    kill_group(process)
    try:
        async with asyncio.timeout(REAP_TIMEOUT_S):
            return await wait_for_exit(process)
    except TimeoutError as error:
        # Only a process stuck in the kernel (a GPU driver, a dead disk) outlives SIGKILL.
        raise WorkerFailed(
            f"process {process.pid} does not die: its device driver hangs, restart the host"
        ) from error


async def wait_for_exit(process: Process) -> int:
    """The exit code as soon as the child itself has ended.

    `Process.wait` also waits for the ends of the pipes, which a paused reader never sees and a grandchild may
    hold open.
    """
    pause_s = 0.001
    while process.returncode is None:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)
    return process.returncode


def close_pipes(process: Process) -> None:
    """Close this end of the pipes of a child that has ended; what was not read is lost."""
    # The transport is no public attribute, but nothing public closes pipes whose other end stays open.
    process._transport.close()  # type: ignore[attr-defined]


async def pump_lines(stream: asyncio.StreamReader, sink: LineSink) -> None:
    """Hand every line of the stream to `sink`, cut at MAX_LINE_CHARS, until it ends.

    Reads in chunks: a child that writes without line ends must neither block nor fill the memory.
    """
    rest = b""
    is_cut = False
    while chunk := await stream.read(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not is_cut:
                _give(line, sink)
            is_cut = False
        if len(rest) > MAX_LINE_CHARS:
            if not is_cut:
                _give(rest, sink)
            rest, is_cut = b"", True
    if rest and not is_cut:
        _give(rest, sink)


def _give(line: bytes, sink: LineSink) -> None:
    text = line[:MAX_LINE_CHARS].decode("utf-8", errors="replace").rstrip()
    if text:
        sink("".join(char if char.isprintable() or char == "\t" else " " for char in text))


def module_argv(module: str, *args: str) -> list[str]:
    """The command line that runs a module of this project with this interpreter."""
    return [sys.executable, "-m", module, *args]


def output_tail(stream: IO[bytes], max_bytes: int) -> bytes:
    """Return the end of what processes have written to a file, however much it is.

    At a place of its own: who writes shares the file's, may still run, and may turn it back for ever.
    """
    size = os.fstat(stream.fileno()).st_size
    return os.pread(stream.fileno(), max_bytes, max(0, size - max_bytes))
