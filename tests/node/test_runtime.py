"""The component runtime: real signals, real exit codes."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import structlog
from structlog.testing import capture_logs

from node.runtime import Shutdown, exit_code_of, first_error, main_guard, run_components, run_role
from protocol.errors import ApiUnavailable, BusError, ConfigError, NotPermitted, QuasarError


@dataclass
class Part:
    """A component made of one coroutine function."""

    work: Callable[[], Awaitable[None]]
    name: str = "part"

    async def run(self) -> None:
        await self.work()


async def for_ever() -> None:
    await asyncio.Event().wait()


def failing(error: BaseException) -> Part:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    return Part(fail, name="failing")


def signal_soon(number: signal.Signals) -> Part:
    async def send() -> None:
        os.kill(os.getpid(), number)
        await for_ever()

    return Part(send, name="sender")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_cancels_components_and_ends_with_0(number: signal.Signals) -> None:
    steps: list[str] = []

    async def drains() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0.01)
            steps.append("drained")

    assert await run_components([Part(drains), signal_soon(number)], drain_s=5) == 0
    assert steps == ["drained"]


async def test_component_may_swallow_its_cancellation_after_draining() -> None:
    async def drains() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()

    assert await run_components([Part(drains), signal_soon(signal.SIGTERM)], drain_s=5) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong key"), 78),
        (NotPermitted("no permit"), 77),
        (ApiUnavailable("gone"), 69),
        (ValueError("bug"), 70),
    ],
)
async def test_first_error_decides_and_siblings_are_cancelled(error: Exception, code: int) -> None:
    cancelled: list[bool] = []

    async def sibling() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with capture_logs() as lines:
        assert await run_components([Part(sibling, "sibling"), failing(error)], drain_s=5) == code
    assert cancelled == [True]
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["component"] == "failing"
    assert line["exit_code"] == code


async def test_second_error_while_stopping_is_logged_but_does_not_decide() -> None:
    async def fails_late() -> None:
        try:
            await for_ever()
        finally:
            raise NotPermitted("late")

    with capture_logs() as lines:
        assert (
            await run_components([Part(fails_late, "late"), failing(ConfigError("first"))], drain_s=5) == 78
        )
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["first", "late"]


async def test_error_while_draining_after_a_signal_is_no_clean_end() -> None:
    async def fails_late() -> None:
        try:
            await for_ever()
        finally:
            raise ApiUnavailable("could not say goodbye")

    assert await run_components([Part(fails_late), signal_soon(signal.SIGTERM)], drain_s=5) == 69


async def test_cause_is_logged() -> None:
    async def fail() -> None:
        try:
            raise OSError("disk on fire")
        except OSError as error:
            raise BusError("stuck") from error

    with capture_logs() as lines:
        assert await run_components([Part(fail)], drain_s=5) == 70
    assert lines[-1]["cause"] == "OSError: disk on fire"


async def test_returning_component_is_an_error() -> None:
    with capture_logs() as lines:
        assert (
            await run_components([Part(lambda: asyncio.sleep(0), "short"), Part(for_ever)], drain_s=5) == 70
        )
    assert lines[-1]["event"] == "component short came to an end: it must run for ever"


async def test_component_that_cancels_itself_is_an_error() -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    with capture_logs() as lines:
        assert await run_components([Part(cancel, "odd"), Part(for_ever)], drain_s=5) == 70
    assert "component odd cancelled itself" in lines[-1]["event"]


async def test_nested_groups_are_unwrapped() -> None:
    async def nested() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(failing(NotPermitted("inner")).run())
            group.create_task(for_ever())

    assert await run_components([Part(nested)], drain_s=5) == 77


async def test_outer_cancellation_passes_through() -> None:
    task = asyncio.create_task(run_components([Part(for_ever)], drain_s=5))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_first_error_prefers_real_ones() -> None:
    group = ExceptionGroup("g", [Shutdown(), ExceptionGroup("h", [ConfigError("x")])])
    assert str(first_error(group)) == "x"
    assert isinstance(first_error(ExceptionGroup("g", [Shutdown()])), Shutdown)
    assert exit_code_of(group) == 78


@dataclass
class Graph:
    """What a wiring builds."""

    components: list[Part]
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


def test_role_closes_last_opened_first_whatever_fails() -> None:
    closed: list[str] = []

    def closer(name: str, error: Exception | None = None) -> Callable[[], Awaitable[None]]:
        async def close() -> None:
            closed.append(name)
            if error is not None:
                raise error

        return close

    async def build() -> Graph:
        return Graph([failing(NotPermitted("x"))], [closer("a"), closer("b", ConfigError("y")), closer("c")])

    assert run_role(build, drain_s=5) == 77
    assert closed == ["c", "b", "a"]

    async def build_stopped() -> Graph:
        return Graph([signal_soon(signal.SIGTERM)], [closer("b", ConfigError("y"))])

    assert run_role(build_stopped, drain_s=5) == 78


def test_role_stopped_while_building_ends_with_0() -> None:
    async def build() -> Graph:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
        raise AssertionError

    assert run_role(build, drain_s=5) == 0


def test_errors_of_the_building_are_raised() -> None:
    async def build() -> Graph:
        raise ConfigError("no wallet")

    with pytest.raises(ConfigError, match="no wallet"):
        run_role(build, drain_s=5)


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (ConfigError("port 5 is wrong"), 78, "quasar-node: port 5 is wrong\n"),
        (ExceptionGroup("g", [NotPermitted("no permit")]), 77, "quasar-node: no permit\n"),
        (ZeroDivisionError("by 0"), 70, "quasar-node: unforeseen ZeroDivisionError: by 0\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_guard_turns_errors_into_one_line(
    error: BaseException, code: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    with capture_logs():
        assert main_guard(main) == code
    assert capsys.readouterr().err == shown
    assert main_guard(lambda: 5) == 5


def test_exit_codes_of_the_error_tree_are_those_documented() -> None:
    def all_of(kind: type[QuasarError]) -> set[type[QuasarError]]:
        return {kind}.union(*(all_of(child) for child in kind.__subclasses__()))

    assert {kind.exit_code for kind in all_of(QuasarError)} == {2, 69, 70, 75, 77, 78}


STUBBORN = textwrap.dedent(
    """
    import asyncio, sys
    from node import runtime
    runtime.FORCE_GRACE_S = 0.1

    class Stubborn:
        name = "stubborn"
        async def run(self):
            print("up", flush=True)
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    print("ignored", flush=True)

    sys.exit(asyncio.run(runtime.run_components([Stubborn()], drain_s=float(sys.argv[1]))))
    """
)


def start_stubborn(drain_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, str(drain_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_second_signal_ends_what_does_not_listen() -> None:
    process = start_stubborn(60)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "ignored\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "second signal" in err


def test_process_ends_without_components_that_outstay_their_drain() -> None:
    process = start_stubborn(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "stubborn" in err


def test_broken_pipe_is_silent() -> None:
    code = (
        "import sys; from node.runtime import main_guard\n"
        "def main():\n  while True: print('x' * 1000)\nsys.exit(main_guard(main))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) == 141


def test_structlog_stays_usable_after_capture() -> None:
    assert structlog.is_configured()


MANY_THREADS = """
import asyncio, ctypes, threading
from node.runtime import run_role

def work(barrier):
    kept = [bytes(2000) for _ in range(100)]
    barrier.wait()
    return kept

async def build():
    barrier = threading.Barrier(5)
    await asyncio.gather(*(asyncio.to_thread(work, barrier) for _ in range(5)))
    ctypes.CDLL(None).malloc_stats()
    raise SystemExit(0)

run_role(build, drain_s=1)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="the C library is not glibc")
@pytest.mark.parametrize(("chosen", "arenas"), [({}, range(1, 3)), ({"MALLOC_ARENA_MAX": "4"}, range(3, 5))])
def test_threads_share_arenas_unless_the_operator_chose_otherwise(
    chosen: dict[str, str], arenas: range
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | chosen
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("Arena ") in arenas, done.stderr
