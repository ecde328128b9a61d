"""`quasar-node tune`: find launch parameters for this GPU and a shape, and keep them for the kernels."""

import argparse
import dataclasses
import json
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from node.devices import resolve_device
from node.settings import LoadedSettings
from protocol.errors import UsageError
from protocol.rules import MAX_TARGET_SEQUENCE_LENGTH
from roles.commands.timing import add_shape_arguments, check_counts, device_for_timing, shape_of

DATABASE: Final = "tune.sqlite"
CPU_LENGTH: Final = 64


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "tune",
        parents=parents,
        help="find the fastest launch parameters for this GPU",
        description="Search launch parameters: each is checked, then timed. It goes on where it was.",
    )
    parser.add_argument("--seq-len", type=int, help="sequence length (default: the miner's target)")
    add_shape_arguments(parser)
    parser.add_argument("--trials", type=int, default=60, help="trials in all, earlier runs included")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the best parameters; 1 when no trial gave a right result.

    Raises UsageError (a number makes no sense), ConfigError (no such GPU, the file for the result cannot be
    read), DeviceBusy.
    """
    settings = loaded.settings
    device_name = resolve_device(settings.node.device)
    is_gpu = device_name != "cpu"
    usual = settings.miner.target_sequence_length if is_gpu else CPU_LENGTH
    length = usual if args.seq_len is None else args.seq_len
    if not 1 <= length <= MAX_TARGET_SEQUENCE_LENGTH:
        raise UsageError(f"--seq-len {length}: must be 1 to {MAX_TARGET_SEQUENCE_LENGTH:,}")
    check_counts(args, "heads", "head_dim", "trials")
    lock = device_for_timing(device_name)
    import torch

    from kernels.benchmark import Benchmark
    from kernels.launch import Launch
    from kernels.tuned import tuned_file
    from kernels.tuner import Tuner

    shape = shape_of(args, device_name, length=length)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with lock, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("no right result yet", total=args.trials)
        best_ms = float("inf")

        def on_trial(launch: Launch, milliseconds: float | None, reason: str) -> None:
            nonlocal best_ms
            if milliseconds is not None and milliseconds < best_ms:
                best_ms = milliseconds
                progress.update(bar, description=f"best {best_ms:.3f} ms")
            outcome = reason if milliseconds is None else f"{milliseconds:.3f} ms"
            values = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(launch).items())
            progress.console.print(f"{values}: {outcome}", highlight=False)
            progress.advance(bar)

        benchmark = Benchmark(torch.device(device_name), repetitions=9 if is_gpu else 3)
        tuner = Tuner(
            shape, benchmark, database=settings.node.data_dir.absolute() / DATABASE, on_trial=on_trial
        )
        progress.update(bar, completed=tuner.done)
        found = tuner.run(args.trials)
    if found is None:
        Console(stderr=True).print(f"none of {tuner.done} trials gave a right result")
        return 1
    launch, milliseconds = found
    document = {
        "key": tuner.key,
        "launch": dataclasses.asdict(launch),
        "milliseconds": milliseconds,
        "trials": tuner.done,
        "file": str(tuned_file()),
    }
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        chosen = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(launch).items())
        print(f"{tuner.key}: {milliseconds:.3f} ms with {chosen}")
        print(f"kept in {tuned_file()}; the kernels use it from now on")
    return 0
