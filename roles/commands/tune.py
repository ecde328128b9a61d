"""`quasar-node tune`: find launch parameters for this GPU and a shape, and keep them for the kernels."""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from node.devices import resolve_device
from node.settings import LoadedSettings
from protocol.errors import UsageError
from protocol.rules import MAX_TARGET_SEQUENCE_LENGTH
from roles.commands.timing import add_shape_arguments, check_counts, device_for_timing, shape_of

if TYPE_CHECKING:
    from kernels.tuner import Found, Outcome, Tuner

DATABASE: Final = "tune.sqlite"
CPU_LENGTH: Final = 64
TRIALS: Final = 60


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
    parser.add_argument(
        "--trials",
        type=int,
        help=f"trials in all, earlier runs included (default: {TRIALS}, without --time-limit)",
    )
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="begin no trial after so long")
    parser.add_argument(
        "--from-baseline",
        action="store_true",
        help="begin with the plain kernel, token by token, in place of the known presets; compare at the end",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of the search as PNG")


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
    _check(args, length)
    lock = device_for_timing(device_name)
    import torch

    from kernels.benchmark import Benchmark
    from kernels.tuner import Tuner

    report = Report(time.monotonic())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    trials = args.trials if args.trials or args.time_limit else TRIALS
    with lock, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("drawing inputs", total=trials)

        def on_trial(outcome: "Outcome") -> None:
            report.add(outcome)
            seconds = report.curve[-1]["elapsed_s"]
            told = outcome.reason if outcome.milliseconds is None else f"{outcome.milliseconds:.3f} ms"
            progress.console.print(
                f"{seconds:6.1f} s  {outcome.choice}: {told}", highlight=False, soft_wrap=True
            )
            best = report.best_ms
            progress.update(bar, description="no right result yet" if best is None else f"best {best:.3f} ms")
            progress.advance(bar)

        tuner = Tuner(
            shape_of(args, device_name, length=length),
            Benchmark(torch.device(device_name), repetitions=9 if is_gpu else 3),
            database=settings.node.data_dir.absolute() / DATABASE,
            on_trial=on_trial,
            start="baseline" if args.from_baseline else "presets",
            between=lock.give_way,
        )
        progress.update(bar, completed=tuner.done)
        found = tuner.run(trials, budget_s=args.time_limit)
        if found is None:
            Console(stderr=True).print(f"none of {tuner.done} trials gave a right result")
            return 1
        document = _document(tuner, found, report, torch.device(device_name))
        if args.from_baseline:
            document |= _compared(tuner, found, report)
    _tell(args, document)
    return 0


@dataclasses.dataclass(slots=True)
class Report:
    """The curve of a search: what each trial of this run gave, and when."""

    started_s: float
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best_ms: float | None = None

    def add(self, outcome: "Outcome") -> None:
        """Take in a trial."""
        if outcome.milliseconds is not None:
            self.best_ms = min(outcome.milliseconds, self.best_ms or outcome.milliseconds)
        self.curve.append(
            {
                "elapsed_s": round(time.monotonic() - self.started_s, 2),
                "configuration": outcome.choice.parameters,
                "milliseconds": outcome.milliseconds,
                "best_ms": self.best_ms,
                "reason": outcome.reason,
            }
        )


def _check(args: argparse.Namespace, length: int) -> None:
    if not 1 <= length <= MAX_TARGET_SEQUENCE_LENGTH:
        raise UsageError(f"--seq-len {length}: must be 1 to {MAX_TARGET_SEQUENCE_LENGTH:,}")
    check_counts(args, "heads", "head_dim", "trials")
    if args.time_limit is not None and not 0 < args.time_limit < float("inf"):
        raise UsageError(f"--time-limit {args.time_limit}: must be a number of seconds above 0")
    if args.plot is not None and not args.plot.absolute().parent.is_dir():
        raise UsageError(f"--plot {args.plot}: no such folder")


def _document(tuner: "Tuner", found: "Found", report: Report, device: Any) -> dict[str, Any]:
    from kernels.benchmark import machine
    from kernels.tuned import tuned_file

    return {
        "key": tuner.key,
        "machine": machine(device),
        "configuration": found.choice.parameters,
        "milliseconds": found.milliseconds,
        "trials": found.trials,
        "file": str(tuned_file()),
        "curve": report.curve,
    }


def _compared(tuner: "Tuner", found: "Found", report: Report) -> dict[str, Any]:
    """The preset of this GPU beside what was found, checked and timed in turn at the end of the same run."""
    from kernels.presets import preset_for
    from kernels.tuner import CHUNK, RECURRENT, Choice

    preset = Choice(CHUNK, preset_for(tuner.key).launch)
    timed = tuner.side_by_side([found.choice, preset])
    preset_ms = timed[preset]
    reached = [
        point["elapsed_s"]
        for point in report.curve
        if point["best_ms"] is not None and point["best_ms"] <= preset_ms
    ]
    baseline = [
        point["milliseconds"]
        for point in report.curve
        if point["configuration"] == Choice(RECURRENT).parameters
    ]
    return {
        "baseline_ms": baseline[0] if baseline else None,
        "found_ms": timed[found.choice],
        "preset": preset.parameters,
        "preset_ms": preset_ms,
        "preset_over_found": preset_ms / timed[found.choice],
        "is_the_preset": found.choice == preset,
        "reached_preset_after_s": reached[0] if reached else None,
        "whole_run_s": round(time.monotonic() - report.started_s, 1),
    }


def _tell(args: argparse.Namespace, document: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(document, indent=2), flush=True)
    else:
        _print(document)
    if args.plot is not None:
        from kernels.tuner_plot import plot

        plot(document["curve"], document["key"], args.plot, preset_ms=document.get("preset_ms"))


def _print(document: dict[str, Any]) -> None:
    chosen = ", ".join(f"{name} {value}" for name, value in document["configuration"].items())
    print(f"{document['key']}: {document['milliseconds']:.3f} ms with {chosen}")
    if "preset_ms" in document:
        print(
            f"the shipped preset beside it: {document['preset_ms']:.3f} ms, "
            f"{document['preset_over_found']:.3f} times the time of what was found"
        )
    print(f"kept in {document['file']}; the kernels use it from now on")
