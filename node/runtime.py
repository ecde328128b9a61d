"""Runs the components of a role until one fails or the operator stops them; the end becomes an exit code."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from node.logs import get_logger
from protocol.errors import ComponentReturned, QuasarError, Temporary

EXIT_OK = 0
EXIT_BUG = 70
EXIT_FORCED = Temporary.exit_code
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
FORCE_GRACE_S = 5.0
"""Components get this much longer than their drain before the process ends without them."""
M_ARENA_MAX = -8
"""glibc's name for how many arenas `malloc` may have (malloc.h)."""
ARENAS = 2

_log = get_logger(__name__)


class Component(Protocol):
    """A long-running part of a role; it works until it is cancelled and drains on the way out."""

    @property
    def name(self) -> str:
        """What logs call it."""
        ...

    async def run(self) -> None:
        """Work for ever; to return is an error."""
        ...


class RunnableGraph(Protocol):
    """What a role's wiring builds: components, and what to close after they ended (last opened first)."""

    @property
    def components(self) -> Sequence[Component]:
        """The parts that run together."""
        ...

    @property
    def closers(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """What to close, in the order of opening."""
        ...


class Shutdown(Exception):
    """Raised inside the task group by SIGINT or SIGTERM to stop all components."""


class _Signals:
    """Catches SIGINT and SIGTERM: the first asks for an orderly end, the second ends the process."""

    def __init__(self) -> None:
        self._received = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._received.is_set():
            _log.warning("second signal: ending without waiting", signal=number.name)
            _exit_now()
        _log.info("stopping", signal=number.name)
        self._received.set()

    async def wait(self) -> None:
        """Return when the first signal has come."""
        await self._received.wait()


def _exit_now() -> None:
    # Not sys.exit: the point is that something does not listen to being cancelled. Children notice
    # the death of their parent by themselves.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(EXIT_FORCED)


async def run_components(components: Sequence[Component], *, drain_s: float) -> int:
    """Run all components in one task group; returns the exit code of the process.

    0 after SIGINT or SIGTERM. The first component that fails decides otherwise: its siblings are cancelled,
    the error is logged with its cause. `drain_s`: how long components may take to end once cancelled;
    shortly after that the process is ended without them.
    """
    with _Signals() as signals:
        return await _run_group(components, drain_s, signals)


async def _run_group(components: Sequence[Component], drain_s: float, signals: _Signals) -> int:
    loop = asyncio.get_running_loop()
    running: dict[str, asyncio.Task[None]] = {}
    deadline: asyncio.TimerHandle | None = None

    def give_up() -> None:
        stuck = sorted(name for name, task in running.items() if not task.done())
        _log.error("components did not stop in time: ending without them", components=stuck, drain_s=drain_s)
        _exit_now()

    async def supervise(component: Component) -> None:
        nonlocal deadline
        try:
            await _run_for_ever(component)
        finally:
            # Every end, good or bad, is the beginning of the end of all: the group cancels the others.
            if deadline is None:
                deadline = loop.call_later(drain_s + FORCE_GRACE_S, give_up)

    async def stop_on_signal() -> None:
        nonlocal deadline
        await signals.wait()
        deadline = deadline or loop.call_later(drain_s + FORCE_GRACE_S, give_up)
        raise Shutdown

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(stop_on_signal(), name="signals")
            for component in components:
                running[component.name] = group.create_task(supervise(component), name=component.name)
    except BaseExceptionGroup as failures:
        return _report(failures, running)
    finally:
        if deadline is not None:
            deadline.cancel()
    return EXIT_OK


async def _run_for_ever(component: Component) -> None:
    """Run the component; it may only end by failing, or because the group cancelled it."""
    task = asyncio.current_task()
    try:
        await component.run()
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        # A task that ends cancelled without being asked to would leave its group without a sound.
        raise ComponentReturned(
            f"component {component.name} cancelled itself: it must run for ever"
        ) from error
    if task is None or not task.cancelling():
        raise ComponentReturned(f"component {component.name} came to an end: it must run for ever")


def _report(failures: BaseExceptionGroup[BaseException], running: dict[str, asyncio.Task[None]]) -> int:
    """Log every failure but Shutdown; the exit code of the first one, 0 when there is none."""
    owners = {
        id(task.exception()): name
        for name, task in running.items()
        if task.done() and not task.cancelled() and task.exception() is not None
    }
    code: int | None = None
    for failure in failures.exceptions:
        if isinstance(failure, Shutdown):
            continue
        failed_with = log_failure(first_error(failure), component=owners.get(id(failure)))
        code = failed_with if code is None else code
    return EXIT_OK if code is None else code


def first_error(error: BaseException) -> BaseException:
    """The first real error inside nested exception groups; the error itself when it is no group."""
    while isinstance(error, BaseExceptionGroup):
        real = [inner for inner in error.exceptions if not isinstance(inner, Shutdown)]
        error = real[0] if real else error.exceptions[0]
    return error


def exit_code_of(error: BaseException) -> int:
    """The process's exit code for an error: its own for the product's errors, 70 for a bug."""
    error = first_error(error)
    return error.exit_code if isinstance(error, QuasarError) else EXIT_BUG


def log_failure(error: BaseException, *, component: str | None = None) -> int:
    """Log what ended a component, foreseen errors in one line and bugs with a traceback; the exit code."""
    code = exit_code_of(error)
    if isinstance(error, QuasarError):
        cause = error.__cause__
        _log.error(
            str(error),
            component=component,
            error=type(error).__name__,
            cause=f"{type(cause).__name__}: {cause}" if cause is not None else None,
            exit_code=code,
        )
    else:
        _log.error("unforeseen error", component=component, exit_code=code, exc_info=error)
    return code


def run_role(build: Callable[[], Awaitable[RunnableGraph]], *, drain_s: float) -> int:
    """Build a role's graph, run it, close it; returns the exit code. Errors of `build` are raised.

    A signal during the building ends it with 0. Closers run last opened first, whatever happened.
    """
    _share_arenas()
    return asyncio.run(_run_role(build, drain_s))


def _share_arenas() -> None:
    """Keep memory flat: glibc gives each thread an arena of its own, which keeps what was freed in it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Another C library has none. An operator's own choice stays.
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)


async def _run_role(build: Callable[[], Awaitable[RunnableGraph]], drain_s: float) -> int:
    with _Signals() as signals:
        building = asyncio.ensure_future(build())
        stopping = asyncio.ensure_future(signals.wait())
        try:
            await asyncio.wait({building, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not building.done():
                building.cancel()
                await asyncio.wait({building})
        if building.cancelled():
            return EXIT_OK
        graph = building.result()
        code = EXIT_OK
        try:
            code = await _run_group(graph.components, drain_s, signals)
        finally:
            closed = await _close_all(graph.closers, drain_s)
        return code or closed


async def _close_all(closers: Sequence[Callable[[], Awaitable[None]]], patience_s: float) -> int:
    code = EXIT_OK
    for close in reversed(closers):
        try:
            async with asyncio.timeout(patience_s):
                await close()
        except Exception as error:  # noqa: BLE001 - the runtime's edge: the other closers must run too
            code = code or log_failure(error, component=getattr(close, "__qualname__", repr(close)))
    return code


def main_guard(main: Callable[[], int]) -> int:
    """Run a command; whatever it raises becomes one line on stderr and an exit code, never a traceback
    for a foreseen error."""
    try:
        return main()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (`| head`) went away; without this the interpreter complains at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as failure:  # noqa: BLE001 - the runtime's edge
        error = first_error(failure)
        if isinstance(error, QuasarError):
            sys.stderr.write(f"quasar-node: {error}\n")
            return error.exit_code
        _log.error("unforeseen error", exit_code=EXIT_BUG, exc_info=error)
        sys.stderr.write(f"quasar-node: unforeseen {type(error).__name__}: {error}\n")
        return EXIT_BUG
