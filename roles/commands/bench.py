"""`quasar-node bench`: our kernels beside their peers on this machine."""

import argparse
import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from node.devices import resolve_device
from node.settings import LoadedSettings
from protocol.errors import UsageError
from protocol.rules import MAX_TARGET_SEQUENCE_LENGTH
from roles.commands.timing import add_shape_arguments, check_counts, device_for_timing, shape_of

if TYPE_CHECKING:
    from kernels.benchmark import Benchmark, Row

GPU_LENGTHS: Final = (4096, 16_384, 65_536, 100_000, 262_144, 1_000_000)
CPU_LENGTHS: Final = (64, 128)
LONGEST: Final = 8 * MAX_TARGET_SEQUENCE_LENGTH


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "bench",
        parents=parents,
        help="time our kernels beside their peers",
        description="Check, then time our kernels and their peers on the same inputs.",
    )
    parser.add_argument("--seq-len", type=int, action="append", help="sequence length; repeatable")
    parser.add_argument("--batch", type=int, help="sequences (default: 1)")
    add_shape_arguments(parser)
    parser.add_argument("--repetitions", type=int, help="timed repetitions (default: 20; on a CPU 3)")
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="only the unoptimised kernel, token by token, at the miner's target length",
    )
    parser.add_argument("--layer", action="store_true", help="the whole layer in place of the operator")
    parser.add_argument(
        "--decode", action="store_true", help="one decoding step of --batch sequences (default: 64)"
    )
    parser.add_argument(
        "--inference",
        action="store_true",
        help="the inference server and its engine beside the plain transformers loop",
    )
    parser.add_argument(
        "--model", help="with --inference: a model's name or folder (default: seeded weights)"
    )
    parser.add_argument(
        "--requests", type=int, help="with --inference: random requests to watch memory over (default: 300)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture as PNG")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print a row for every operator and length; 0 when ours are right at all of them, 1 otherwise.

    Raises UsageError (a number makes no sense), ConfigError (no such GPU, no matplotlib for --plot),
    DeviceBusy.
    """
    if args.inference:
        from roles.commands.bench_inference import bench_inference

        check_counts(args, "requests")
        return bench_inference(loaded.settings, args.model, args.requests or 300, as_json=args.json)
    device_name = resolve_device(loaded.settings.node.device)
    lengths = _lengths(args, loaded.settings.miner.target_sequence_length, device_name)
    check_counts(args, "batch", "heads", "head_dim", "repetitions")
    if sum((args.baseline, args.layer, args.decode)) > 1:
        raise UsageError("--baseline, --layer and --decode: choose one of them")
    if args.plot is not None and not args.plot.absolute().parent.is_dir():
        raise UsageError(f"--plot {args.plot}: no such folder")
    lock = device_for_timing(device_name)
    import torch

    from kernels.benchmark import Benchmark, machine

    device = torch.device(device_name)
    rows = []
    with lock, Console(stderr=True).status("drawing inputs ...") as status:
        benchmark = Benchmark(device, repetitions=args.repetitions or (3 if device_name == "cpu" else 20))
        for row in _rows(args, benchmark, lengths):
            rows.append(row)
            status.update(f"{row.operator} at {row.length:,}: {_outcome(row)}")
    document = {
        "machine": {**machine(device), **_clocks(device_name)},
        "copy_bytes_per_sec": benchmark.copy_bytes_per_sec,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        _print(rows, document["machine"], benchmark.copy_bytes_per_sec)
    if args.plot is not None:
        from kernels.benchmark_plot import plot

        plot(rows, f"QuasarAttention forward, {document['machine']['device']}", args.plot)
    ours = [row for row in rows if row.operator.startswith("quasar")]
    return 0 if all(row.milliseconds is not None or row.skipped.startswith("longer") for row in ours) else 1


def _rows(args: argparse.Namespace, benchmark: "Benchmark", lengths: tuple[int, ...]) -> Iterator["Row"]:
    """What the flags ask for."""
    from kernels.benchmark import RECURRENT, peers
    from kernels.benchmark_layer import decode_rows, layer_rows

    device = str(benchmark.device)
    shapes = [shape_of(args, device, length=length, batch=args.batch or 1) for length in lengths]
    heads, dim = shapes[0].heads, shapes[0].dim
    if args.layer:
        return layer_rows(benchmark, lengths, heads=heads, dim=dim)
    if args.decode:
        return decode_rows(benchmark, sequences=args.batch or 64, heads=heads, dim=dim)
    chosen = peers(benchmark.device)
    if args.baseline:
        chosen = [dataclasses.replace(peer, longest=LONGEST) for peer in chosen if peer.name == RECURRENT]
    return benchmark.run(shapes, chosen)


def _lengths(args: argparse.Namespace, target: int, device: str) -> tuple[int, ...]:
    chosen: tuple[int, ...] = tuple(args.seq_len or ())
    if not chosen:
        usual = CPU_LENGTHS if device == "cpu" else GPU_LENGTHS
        chosen = (target,) if args.baseline else usual
    for length in chosen:
        if not 1 <= length <= LONGEST:
            raise UsageError(f"--seq-len {length}: must be 1 to {LONGEST:,}")
    return chosen


def _outcome(row: "Row") -> str:
    return row.skipped or f"{row.milliseconds:,.3f} ms"


def _print(rows: list["Row"], about: dict[str, str], copy_bytes_per_sec: float) -> None:
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("operator", no_wrap=True)
    for heading in ("length", "ms", "spread", "tok/s", "of floor", "peak MB", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.milliseconds is not None:
            table.add_row(
                row.operator,
                f"{row.length:,}",
                f"{row.milliseconds:,.3f}",
                f"{row.spread:.0%}",
                f"{row.tokens_per_sec:,.0f}",
                f"{row.floor_share:.1%}",
                "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
                f"{row.relative_error:.1e}",
            )
    console.print(table)
    speed = f"{copy_bytes_per_sec / 1e9:,.1f} GB/s"
    console.print(
        f"floor: what must be read and written, once, at {speed}, a copy's speed here", highlight=False
    )
    for row in rows:
        if row.milliseconds is None:
            console.print(f"{row.operator} at {row.length:,}: {row.skipped}", markup=False, highlight=False)


def _clocks(device: str) -> dict[str, str]:
    """What the driver says of the card: a throttled one explains a slow run."""
    if device == "cpu":
        return {}
    names = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu")
    index = device.partition(":")[2] or "0"
    result = subprocess.run(
        ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    values = [value.strip() for value in result.stdout.strip().split(",")]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}
