"""The inference server measured from outside: what HTTP adds, many clients, odd requests, a validator."""

import asyncio
import contextlib
import os
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp

from node.chain import AxonAddress
from node.settings_model import ChainSection, InferenceSection, NodeSection, Settings
from protocol.errors import QuasarError
from protocol.messages import ModelInfo
from roles.inference.benchmark_target import ORDINARY, Target
from roles.validator.logits import LogitVerifier

REQUESTS: Final = 20
CLIENTS: Final = 32
ROUNDS: Final = 4
LOOK_S: Final = 0.005
IN_WORK: Final = ("quasar_inference_requests_waiting ", "quasar_inference_requests_running ")
CHALLENGES: Final = 5
MiB: Final = 2**20


async def overhead(target: Target) -> dict[str, Any]:
    """Milliseconds from request to response beyond the model's own time."""
    result: dict[str, Any] = {}
    kinds: dict[str, dict[str, Any]] = {
        "without_logits": {},
        "base64": {"logits_at_step": 4, "logits_encoding": "base64"},
        "list": {"logits_at_step": 4, "logits_encoding": "list"},
    }
    for name, fields in kinds.items():
        await target.generate(gen_len=4, **fields)
        extra_ms = []
        for _ in range(REQUESTS):
            answer, seconds = await target.generate(gen_len=4, **fields)
            extra_ms.append((seconds - answer.elapsed_sec) * 1e3)
        result[name] = {"median_ms": statistics.median(extra_ms), "largest_ms": max(extra_ms)}
    return result


async def concurrency(target: Target) -> dict[str, Any]:
    """Many clients at once: nobody is refused, and they are answered in the order of their coming."""
    seconds: list[float] = []
    errors = out_of_order = 0
    for _ in range(ROUNDS):
        finished: list[int] = []

        async def client(number: int, finished: list[int] = finished) -> float:
            _, taken = await target.generate(gen_len=64, logits_at_step=32, logits_encoding="base64")
            finished.append(number)
            return taken

        clients: list[asyncio.Task[float]] = []
        for number in range(CLIENTS):
            clients.append(asyncio.create_task(client(number)))
            await _all_taken(target, clients)
        answered = await asyncio.gather(*clients, return_exceptions=True)
        errors += sum(isinstance(one, BaseException) for one in answered)
        seconds += [one for one in answered if isinstance(one, float)]
        out_of_order += sum(one > other for one, other in pairwise(finished))
    if not seconds:
        raise QuasarError(f"none of {CLIENTS} clients at once was answered: {answered[0]!r}")
    return {
        "clients": CLIENTS,
        "requests": ROUNDS * CLIENTS,
        "errors": errors,
        "answered_out_of_order": out_of_order,
        "median_s": statistics.median(seconds),
        "p99_s": sorted(seconds)[round(0.99 * (len(seconds) - 1))],
    }


async def _all_taken(target: Target, clients: list[asyncio.Task[float]]) -> None:
    """Wait until the server has every client's request, so that the order of their coming is known."""
    # Counted before the server is asked: none is counted twice.
    while (ended := sum(one.done() for one in clients)) < len(clients):
        in_work = 0.0
        # A server that is gone has ended its clients' requests too.
        with contextlib.suppress(aiohttp.ClientError):
            async with target.session.get(target.url + "/metrics") as response:
                lines = (await response.text()).splitlines()
            in_work = sum(float(line.split()[1]) for line in lines if line.startswith(IN_WORK))
        if ended + in_work >= len(clients):
            return
        await asyncio.sleep(LOOK_S)


async def soak(target: Target, count: int, *, gap_s: float = 0.0) -> dict[str, Any]:
    """Random valid and invalid requests: the answers are those promised, and memory stays as it was.

    They begin `gap_s` seconds apart, or one after the other when answers take longer.
    """
    async with target.session.get(target.url + "/model_info") as response:
        model = ModelInfo.model_validate_json(await response.read())
    statuses: dict[int, int] = {}
    before: dict[str, int] = {}
    for number in range(count):
        if number == count // 4:
            before = memory_bytes(target)
        body = _random_body(target, model)
        status, _, seconds = await target.ask(body)
        await asyncio.sleep(max(0.0, gap_s - seconds))
        statuses[status] = statuses.get(status, 0) + 1
    after = memory_bytes(target)
    unexpected = set(statuses) - {200, 400, 413, 422}
    return {
        "requests": count,
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "unexpected_statuses": sorted(unexpected),
        "growth_mib": {name: (after[name] - before[name]) / MiB for name in after if name in before},
        "after_mib": {name: size / MiB for name, size in after.items()},
    }


async def challenges(target: Target, model: str, device: str) -> dict[str, Any]:
    """A validator's own check of this server."""
    settings = Settings(
        node=NodeSection(device=device),
        chain=ChainSection(network="local"),
        inference=InferenceSection(reference_model=model),
    )
    verifier = LogitVerifier(settings, target.validator)
    port = int(target.url.rpartition(":")[2])
    try:
        await verifier.start()
        axon = AxonAddress("127.0.0.1", port)
        results = [await verifier.check(target.miner, axon) for _ in range(CHALLENGES)]
    finally:
        await verifier.close()
    return {
        "outcomes": [one.outcome.value for one in results],
        "reasons": sorted({one.reason for one in results}),
        "times_rounding_largest": max(one.times_rounding or 0.0 for one in results),
        "max_abs_diff_largest": max(one.max_abs_diff or 0.0 for one in results),
        "tokens_per_sec_median": statistics.median(one.tokens_per_sec or 0.0 for one in results),
    }


def _random_body(target: Target, model: ModelInfo) -> bytes:
    draw = target.draw
    prompt = draw.choices(range(min(ORDINARY, model.vocab_size)), k=draw.randint(1, 300))
    valid = {"prompt": prompt, "gen_len": draw.randint(1, 32)}
    broken: list[Callable[[], bytes]] = [
        lambda: target.body(**valid | {"prompt": [*prompt, -1]}),
        lambda: target.body(**valid | {"prompt": [*prompt, model.vocab_size]}),
        lambda: target.body(**valid | {"prompt": []}),
        lambda: target.body(**valid | {"gen_len": draw.choice([0, -1, 10**9, "4", 1.5, [1]])}),
        lambda: target.body(**valid | {"logits_at_step": draw.choice([0, 33, "1"])}),
        lambda: target.body(**valid | {"prompt": [[1]]}),
        lambda: target.body(**valid)[: draw.randint(0, 40)],
        lambda: target.body(**valid | {"prompt": [1] * 600_000}),
    ]
    if draw.random() < 0.5:
        return draw.choice(broken)()
    if draw.random() < 0.5:
        valid |= {"logits_at_step": draw.randint(1, valid["gen_len"])}
    return target.body(**valid, logits_encoding=draw.choice(["list", "base64"]))


def memory_bytes(target: Target) -> dict[str, int]:
    """Resident bytes of the server and of the model's process."""
    sizes = {"server": _resident_bytes(target.process.pid)}
    children = Path(f"/proc/{target.process.pid}/task/{target.process.pid}/children").read_text().split()
    sizes["model_process"] = sum(_resident_bytes(int(child)) for child in children)
    return sizes


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
