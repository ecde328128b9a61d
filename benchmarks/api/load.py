"""The load: keep-alive connections that send one request after the other, or at a steady rate.

Run as a process of its own: it reads a plan as JSON from standard input and writes what it saw to standard
output. `paths`: what GET asks for, in turn. `bodies`: a file with a request body a line, each sent once to
/submit_kernel. `rate`: requests a second in all, None for as fast as answers come. `share`: of `rate`, the
part that is bodies.
"""

import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

END = b"\r\n\r\n"
LENGTH = b"content-length: "


class Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(
        self,
        on_answer: Callable[["Connection", int, float], None],
        on_loss: Callable[["Connection"], None],
    ) -> None:
        self._on_answer = on_answer
        self._on_loss = on_loss
        self._buffer = b""
        self._started_s = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes, due_s: float) -> None:
        """Send one request; its time counts from when it was due: waiting for a turn is not hidden."""
        assert self._transport is not None
        self._started_s = due_s
        self._transport.write(request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so: an answer that cannot come any more must not be waited for."""
        self._on_loss(self)

    def data_received(self, data: bytes) -> None:
        """Collect the answer; report it when it is whole."""
        self._buffer += data
        head = self._buffer.find(END)
        if head < 0:
            return
        lowered = self._buffer[:head].lower()
        at = lowered.find(LENGTH)
        size = int(lowered[at + len(LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < head + len(END) + size:
            return
        status = int(self._buffer[9:12])
        self._buffer = b""
        self._on_answer(self, status, time.perf_counter() - self._started_s)


def get(path: str) -> bytes:
    """A GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: api\r\n\r\n".encode()


def post(body: bytes) -> bytes:
    """A POST request to /submit_kernel."""
    head = (
        "POST /submit_kernel HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def requests(plan: dict[str, Any]) -> Iterator[bytes]:
    """What to send, in order; without paths it ends with the bodies."""
    paths = cycle([get(path) for path in plan["paths"]]) if plan["paths"] else None
    bodies = Path(plan["bodies"]).read_bytes().splitlines() if plan.get("bodies") else []
    every = round(1 / plan["share"]) if plan.get("share") else 1
    number = 0
    waiting = iter(bodies)
    while True:
        number += 1
        body = next(waiting, None) if bodies and number % every == 0 else None
        if body is not None:
            yield post(body)
        elif paths is not None:
            yield next(paths)
        else:
            return


async def as_fast_as_possible(plan: dict[str, Any]) -> dict[str, Any]:
    """Every connection sends its next request when the answer before has come."""
    todo = requests(plan)
    statuses: Counter[int] = Counter()
    times_s: list[float] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    busy = plan["connections"]
    end_s = time.perf_counter() + plan["seconds"]

    def answered(connection: Connection, status: int, took_s: float) -> None:
        nonlocal busy
        statuses[status] += 1
        times_s.append(took_s)
        now_s = time.perf_counter()
        request = next(todo, None) if now_s < end_s else None
        if request is None:
            busy -= 1
            if busy == 0:
                done.set_result(None)
            return
        connection.ask(request, now_s)

    connections = await _connect(plan, answered, _fails(done))
    started_s = time.perf_counter()
    for connection in connections:
        connection.ask(next(todo), time.perf_counter())
    await done
    return _report(statuses, times_s, time.perf_counter() - started_s)


async def at_a_rate(plan: dict[str, Any]) -> dict[str, Any]:
    """Requests fall due evenly, whether or not answers have come; the longest free connection takes each.

    In turn, because a server closes a connection that nothing has used for a while.
    """
    todo = requests(plan)
    statuses: Counter[int] = Counter()
    times_s: list[float] = []
    free: deque[Connection] = deque()
    due: deque[tuple[bytes, float]] = deque()
    total = int(plan["rate"] * plan["seconds"])
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(connection: Connection, status: int, took_s: float) -> None:
        statuses[status] += 1
        times_s.append(took_s)
        if due:
            connection.ask(*due.popleft())
        else:
            free.append(connection)
        if len(times_s) == total:
            done.set_result(None)

    free.extend(await _connect(plan, answered, _fails(done)))
    started_s = time.perf_counter()
    for number in range(total):
        due_s = started_s + number / plan["rate"]
        if (wait_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        request = next(todo)
        if done.done():
            break
        if free:
            free.popleft().ask(request, due_s)
        else:
            due.append((request, due_s))
    async with asyncio.timeout(30):
        await done
    return _report(statuses, times_s, time.perf_counter() - started_s)


def _fails(done: asyncio.Future[None]) -> Callable[[Connection], None]:
    """What a lost connection does: while the load runs, the measurement is void."""

    def lost(_connection: Connection) -> None:
        if not done.done():
            done.set_exception(ConnectionError("the server closed a connection"))

    return lost


async def _connect(
    plan: dict[str, Any],
    answered: Callable[[Connection, int, float], None],
    lost: Callable[[Connection], None],
) -> list[Connection]:
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Connection(answered, lost), "127.0.0.1", plan["port"])
        for _ in range(plan["connections"])
    ]
    return [connection for _, connection in made]


def _report(statuses: Counter[int], times_s: list[float], took_s: float) -> dict[str, Any]:
    ordered = sorted(times_s)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {
        "requests": len(times_s),
        "seconds": round(took_s, 2),
        "per_second": round(len(times_s) / took_s, 1),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "p999_ms": at(0.999),
        "max_ms": at(1.0),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump(asyncio.run(at_a_rate(given) if given.get("rate") else as_fast_as_possible(given)), sys.stdout)
