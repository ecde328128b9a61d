"""Worker processes: GPU work and foreign code run in children that may crash or hang without harm."""

import asyncio
import contextlib
import json
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from node.clock import Clock, SystemClock
from node.logs import get_logger
from node.processes import (
    LineSink,
    close_pipes,
    end_process,
    module_argv,
    pump_lines,
    start_process,
    wait_for_exit,
    worker_environment,
)
from protocol.errors import WorkerFailed, WorkerRefused

__all__ = ["WorkerFailed", "WorkerProcess", "WorkerRefused", "run_json_process", "worker_environment"]

MAX_LINE_BYTES = 64 * 1024 * 1024
BACKOFF_START_S = 0.5
BACKOFF_MAX_S = 30.0
KEPT_LINES = 20

_log = get_logger(__name__)


class WorkerProcess:
    """A long-lived child `python -m module` that answers one call at a time (see `node.worker_main.serve`).

    Starts with the first call (or `start`); a crash or a hang ends in WorkerFailed, the child's whole process
    group is killed, and the next call starts a new one after a back-off that grows until a call succeeds.
    `env` is added to the allowed variables and must hold no secret.
    """

    def __init__(
        self,
        module: str,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        name: str | None = None,
        start_timeout_s: float = 120.0,
        on_stderr_line: LineSink | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name if name is not None else module.rpartition(".")[2]
        self._argv = module_argv(module, *args)
        self._env = worker_environment(env)
        self._start_timeout_s = start_timeout_s
        self._sink = on_stderr_line if on_stderr_line is not None else self._log_line
        self._clock = clock if clock is not None else SystemClock()
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._failures = 0
        self._earliest_start = 0.0
        self._next_id = 0
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """True while a child runs that has said that it can take calls."""
        return self._is_ready and self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the child unless it runs, and wait until it is ready; raises WorkerFailed."""
        async with self._lock:
            await self._ensure_started()

    async def call(self, method: str, params: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Have the child do something; other calls wait for their turn.

        `timeout_s` counts from the moment that the child has the call. Raises WorkerRefused with the child's
        own sentence, WorkerFailed when it crashed, hung or broke the protocol (it is dead by then). A
        cancelled call kills the child too: nothing else stops what it computes.
        """
        async with self._lock:
            await self._ensure_started()
            self._next_id += 1
            call = {"id": self._next_id, "method": method, "params": dict(params)}
            line = json.dumps(call, separators=(",", ":")).encode() + b"\n"
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await self._exchange(line)
            except TimeoutError as error:
                await self._discard()
                raise WorkerFailed(
                    f"worker {self.name} did not finish {method} within {timeout_s:g} s and was killed"
                ) from error
            except BaseException:
                await self._discard()
                raise
            if answer.get("id") != self._next_id:
                await self._discard()
                raise WorkerFailed(f"worker {self.name} answered another call than {method} and was killed")
            self._failures = 0
        if "refused" in answer:
            raise WorkerRefused(str(answer["refused"]))
        result = answer.get("result")
        if not isinstance(result, dict):
            raise WorkerFailed(f"worker {self.name} answered {method} with no result object")
        return result

    async def close(self, *, patience_s: float = 2.0) -> None:
        """End the child after its running call: stdin closes, and after `patience_s` its group is killed."""
        async with self._lock:
            await self._discard(patience_s=patience_s, is_failure=False)

    async def kill(self) -> None:
        """End the child now; a running call fails with WorkerFailed."""
        process = self._process
        if process is not None:
            await end_process(process)

    async def _ensure_started(self) -> None:
        if self.is_ready:
            return
        if self._process is not None:
            code = self._process.returncode
            await self._discard()
            _log.warning("worker had died", worker=self.name, exit_code=code)
        await self._clock.sleep(self._earliest_start - self._clock.monotonic())
        self._last_lines.clear()
        self._process = await start_process(self._argv, self._env, line_limit_bytes=MAX_LINE_BYTES)
        assert self._process.stderr is not None
        self._pump = asyncio.create_task(pump_lines(self._process.stderr, self._take_line))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                answer = await self._read_answer()
        except TimeoutError as error:
            await self._discard()
            raise WorkerFailed(
                f"worker {self.name} was not ready within {self._start_timeout_s:g} s and was killed"
            ) from error
        except BaseException:
            await self._discard()
            raise
        if "ready" not in answer:
            await self._discard()
            raise WorkerFailed(f"worker {self.name} did not begin by saying that it is ready")
        self._is_ready = True
        _log.info("worker started", worker=self.name, pid=self._process.pid)

    async def _exchange(self, line: bytes) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            # A child that died shows in what is read next, with its exit code.
            self._process.stdin.write(line)
            await self._process.stdin.drain()
        return await self._read_answer()

    async def _read_answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
        except ValueError as error:
            raise WorkerFailed(f"worker {self.name} answered more than {MAX_LINE_BYTES} bytes") from error
        if not line.endswith(b"\n"):
            raise WorkerFailed(await self._death_sentence())
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise WorkerFailed(
                f"worker {self.name} answered something that is not JSON: {line[:80]!r}"
            ) from error
        if not isinstance(answer, dict):
            raise WorkerFailed(f"worker {self.name} answered no JSON object: {line[:80]!r}")
        return answer

    async def _death_sentence(self) -> str:
        assert self._process is not None
        code = await end_process(self._process, patience_s=1.0)
        if self._pump is not None:
            await asyncio.wait({self._pump}, timeout=1.0)
        return f"worker {self.name} {describe_exit(code)}{_last_words(self._last_lines)}"

    async def _discard(self, *, patience_s: float = 0.0, is_failure: bool = True) -> None:
        """Forget the child after making sure that it is dead."""
        process, self._process = self._process, None
        pump, self._pump = self._pump, None
        self._is_ready = False
        if is_failure:
            self._failures += 1
            backoff_s = min(BACKOFF_MAX_S, BACKOFF_START_S * 2.0 ** min(self._failures - 1, 16))
            self._earliest_start = self._clock.monotonic() + backoff_s
        try:
            if process is not None:
                await end_process(process, patience_s=patience_s)
        finally:
            if pump is not None:
                await _stop_pump(pump)
            if process is not None:
                close_pipes(process)

    def _take_line(self, line: str) -> None:
        self._last_lines.append(line)
        self._sink(line)

    def _log_line(self, line: str) -> None:
        _log.info("worker says", worker=self.name, line=line)


async def run_json_process(
    argv: Sequence[str],
    document: str,
    *,
    timeout_s: float,
    env: Mapping[str, str],
    on_stderr_line: LineSink,
    max_answer_bytes: int = MAX_LINE_BYTES,
) -> str:
    """Run a child once: `document` on its stdin, its whole stdout back, each stderr line to the sink.

    `env` is the child's complete environment (see `worker_environment`). Raises WorkerFailed when it cannot
    start, ends with another code than 0, takes longer than `timeout_s` or answers too much. Its process group
    is killed and reaped on every way out, cancellation included.
    """
    name = next((word for word in reversed(argv) if not word.startswith("-")), argv[0])
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    def take_line(line: str) -> None:
        last_lines.append(line)
        on_stderr_line(line)

    process = await start_process(argv, env, line_limit_bytes=1024 * 1024)
    assert process.stdout is not None
    assert process.stderr is not None
    pump = asyncio.create_task(pump_lines(process.stderr, take_line))
    feed = asyncio.create_task(_feed(process, document.encode()))
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _read_bounded(process.stdout, max_answer_bytes, name)
            code = await wait_for_exit(process)
    except TimeoutError as error:
        raise WorkerFailed(
            f"process {name} did not finish within {timeout_s:g} s and was killed{_last_words(last_lines)}"
        ) from error
    finally:
        feed.cancel()
        try:
            await end_process(process)
        finally:
            await asyncio.wait({feed})
            await _stop_pump(pump)
            close_pipes(process)
    if code != 0:
        raise WorkerFailed(f"process {name} {describe_exit(code)}{_last_words(last_lines)}")
    try:
        return answer.decode()
    except UnicodeDecodeError as error:
        raise WorkerFailed(f"process {name} answered something that is not UTF-8") from error


async def _feed(process: Process, document: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(document)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _read_bounded(stream: asyncio.StreamReader, limit_bytes: int, name: str) -> bytes:
    parts = bytearray()
    while chunk := await stream.read(65_536):
        parts += chunk
        if len(parts) > limit_bytes:
            raise WorkerFailed(f"process {name} answered more than {limit_bytes} bytes and was killed")
    return bytes(parts)


async def _stop_pump(pump: asyncio.Task[None]) -> None:
    """Let the pump read what the dead child left behind; a stray grandchild may hold the pipe open."""
    await asyncio.wait({pump}, timeout=1.0)
    pump.cancel()
    await asyncio.wait({pump})
    if not pump.cancelled() and (error := pump.exception()) is not None:
        raise error


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _last_words(lines: Sequence[str]) -> str:
    return f"; its last words: {lines[-1]}" if lines else ""
