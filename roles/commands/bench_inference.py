"""`quasar-node bench --inference`: the inference server beside the plain transformers loop."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from node.devices import resolve_device
from node.processes import module_argv, worker_environment
from node.settings_model import Settings
from protocol.errors import QuasarError, WorkerFailed
from roles.commands.timing import device_for_timing
from roles.inference.benchmark_server import challenges, concurrency, overhead, soak
from roles.inference.benchmark_target import Target, serving
from roles.inference.model_path import check_model_path

MODEL_TIMEOUT_S: Final = 300.0
ENGINE_TIMEOUT_S: Final = 600.0
LINE_LIMIT_BYTES: Final = 2**20
NOT_IN_TABLE: Final = ("model", "machine", "margins", "launches")

Parts = dict[str, Any]


def bench_inference(settings: Settings, model: str | None, requests: int, *, as_json: bool) -> int:
    """Measure engine and server; 0 when every part was measured and every answer was right, 1 otherwise.

    `model` is a name or a folder; without one, a seeded model is written: the reference model's shape on a
    GPU, a tiny one on a CPU. Raises ConfigError, DeviceBusy.
    """
    device = resolve_device(settings.node.device)
    parts: Parts = {"model": model or "seeded"}
    with tempfile.TemporaryDirectory(prefix="quasar-bench-") as name:
        folder = Path(name)
        served = (
            check_model_path(model) if model is not None else asyncio.run(_seeded(folder / "model", device))
        )
        with device_for_timing(device):
            asyncio.run(_guarded(parts, "engine", lambda: _engine(served, device, parts)))
        # The server takes the device for each answer: with the turn held here every one would wait for it.
        asyncio.run(_guarded(parts, "server", lambda: _server(folder, served, device, requests, parts)))
    problems = find_problems(parts)
    if as_json:
        print(json.dumps({**parts, "problems": problems}, indent=2))
    else:
        _print(parts, problems)
    return 1 if problems else 0


def _keep(parts: Parts, measured: Parts) -> None:
    """Take over what was measured, and show it: whoever ends the command now has at least that."""
    parts.update(measured)
    print(json.dumps(measured), file=sys.stderr, flush=True)


async def _guarded(parts: Parts, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """One part's failure is its result: the others are measured all the same."""
    try:
        await work()
    except (QuasarError, OSError, TimeoutError) as error:
        parts[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(f"{name}: {parts[name]['error']}", file=sys.stderr)


async def _seeded(path: Path, device: str) -> str:
    """Write a model in a process of its own: this one does not load torch."""
    module = "roles.inference.tiny_model" if device == "cpu" else "roles.inference.seeded_model"
    print("writing a model with seeded weights ...", file=sys.stderr)
    process = await asyncio.create_subprocess_exec(
        *module_argv(module, str(path)), env=worker_environment(), stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(MODEL_TIMEOUT_S):
        code = await process.wait()
    if code != 0:
        raise WorkerFailed(f"the model with seeded weights was not written: exit code {code}")
    return str(path)


async def _engine(model: str, device: str, parts: Parts) -> None:
    """The engine's figures, each taken over as soon as its line comes."""
    process = await asyncio.create_subprocess_exec(
        *module_argv("roles.inference.benchmark", model, "--device", device),
        env=worker_environment(),
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT_BYTES,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(ENGINE_TIMEOUT_S):
            async for line in process.stdout:
                _keep(parts, json.loads(line))
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise WorkerFailed(f"the engine's measurement ended with exit code {code}")


async def _server(folder: Path, model: str, device: str, requests: int, parts: Parts) -> None:
    home = folder / "subnet"
    home.mkdir()
    print("starting the server ...", file=sys.stderr)
    async with serving(home, model, device, max_gen_len=1024) as target:
        measured: dict[str, Callable[[Target], Awaitable[dict[str, Any]]]] = {
            "http_overhead": overhead,
            "concurrency": concurrency,
            "soak": lambda target: soak(target, requests),
            "challenges": lambda target: challenges(target, model, device),
        }
        for name, measure in measured.items():

            async def work(name: str = name, measure: Any = measure) -> None:
                _keep(parts, {name: await measure(target)})

            await _guarded(parts, name, work)
    shutil.rmtree(home)


def find_problems(parts: Parts) -> list[str]:
    """What was not measured, and what was measured and is wrong."""
    problems = [f"{name}: {part['error']}" for name, part in parts.items() if "error" in part]
    decode = parts.get("decode", {})
    if decode.get("largest_gap_to_the_best", 0.0) > 0.1:
        problems.append("decode: a token is not the plain model's choice")
    if decode.get("same_answer_twice") is False:
        problems.append("decode: the same request was answered in two ways")
    if parts.get("exact_in_float32", {}).get("identical_tokens") is False:
        problems.append("exact_in_float32: other tokens than the plain loop's")
    if parts.get("concurrency", {}).get("errors"):
        problems.append(f"concurrency: {parts['concurrency']['errors']} requests were not answered")
    if parts.get("soak", {}).get("unexpected_statuses"):
        problems.append(f"soak: answered {parts['soak']['unexpected_statuses']}")
    if set(parts.get("challenges", {}).get("outcomes", ())) - {"passed"}:
        problems.append(f"challenges: {parts['challenges']['reasons']}")
    return problems


def _print(parts: Parts, problems: list[str]) -> None:
    console = Console()
    machine = parts.get("machine", {})
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    table = Table("part", "figure", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("value", justify="right")
    for name, part in parts.items():
        if name in NOT_IN_TABLE:
            continue
        for figure, value in _flat(part):
            table.add_row(name.replace("_", " "), figure, value)
    console.print(table)
    _print_margins(console, parts.get("margins", {}))
    for problem in problems:
        console.print(problem, markup=False, highlight=False)


def _print_margins(console: Console, margins: dict[str, Any]) -> None:
    """How far each model's logits are from the reference, in units of what float16 does to it."""
    table = Table("served", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("times rounding", "largest", "smallest", "max diff", "other tokens"):
        table.add_column(heading, justify="right")
    for name, found in margins.items():
        if isinstance(found, dict):
            table.add_row(
                name,
                f"{found['times_rounding_median']:.2f}",
                f"{found['times_rounding_largest']:.2f}",
                f"{found['times_rounding_smallest']:.2f}",
                f"{found['max_abs_diff_largest']:.4f}",
                f"{found['share_of_other_tokens']:.1%}",
            )
    if table.row_count:
        console.print(table)


def _flat(part: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in part.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}, ")
        elif isinstance(value, float):
            rows.append((f"{prefix}{name}".replace("_", " "), f"{value:,.4g}"))
        elif value is not None and not isinstance(value, list):
            rows.append((f"{prefix}{name}".replace("_", " "), str(value)))
    return rows
