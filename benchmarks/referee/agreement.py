"""How far the referee's figure for our own operator is from CUDA events in an honest process.

    python -m benchmarks.referee.agreement --seq-len 100000 --seq-len 1000000 --repeat 3

For every length the exported fork is judged by the referee, through the real sandbox. Before and after each
verdict it is timed by CUDA events in a process that imports the very same files: one call after a pause, with
nothing of its inputs in the L2 cache; some calls in a row; and calls like those of a trial, about as many,
each on inputs of its own and with a beta that comes from the output before. The yardstick's worker says what
CUDA events gave for its calls in the very same trials. `difference` is that of the referee's figure from some
calls in a row, `difference_like_a_trial` from those like a trial's, `difference_from_one` from one call,
`difference_in_the_trials` from the yardstick's. `repeats` holds, for each length, how far the verdicts lie
apart. Prints one JSON document.
"""

import argparse
import asyncio
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from kernels.export import export_files
from node.settings_model import Settings
from protocol.forks import TARGET_DIR
from protocol.messages import DirectorySource, EvaluationReport
from roles.evaluation import Referee
from roles.referee.quartiles import typical

REPETITIONS = 21
CALLS_IN_A_ROW = 8
WARM_UP_S = 0.5
"""A GPU that has just woken up is slower."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seq-len", type=int, action="append", help="default: 100,000 and 1,000,000")
    parser.add_argument("--repeat", type=int, default=1, help="verdicts for each length")
    parser.add_argument("--trials", type=int, default=24, help="timed trials of each verdict")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--honest", metavar="TREE", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.seq_len = args.seq_len or [100_000, 1_000_000]
    return args


def main() -> int:
    """Measure and print; 1 when a verdict was not `passed`."""
    args = parse(sys.argv[1:])
    if args.honest is not None:
        _serve_honest(Path(args.honest), args.device)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = _compare(Path(folder), args)
    print(json.dumps({"repeats": _repeats(rows), "rows": rows}, indent=2))
    return 0 if all(row["status"] == "passed" for row in rows) else 1


def _compare(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    # The honest process lays its tree over the pinned base: the referee's stays as a miner's is.
    fork, tree = folder / "fork", folder / "honest"
    for root in (fork, tree):
        (root / TARGET_DIR).mkdir(parents=True)
        for name, text in export_files("chunk").items():
            (root / TARGET_DIR / name).write_text(text)
    settings = Settings.model_validate(
        {
            "node": {"device": args.device},
            "evaluation": {"trials_max": args.trials, "trials_min": min(5, args.trials)},
        }
    )
    referee = Referee(settings, folder / "data")
    rows = []
    with _Honest(tree, args.device) as honest:
        for length in args.seq_len:
            before = honest.times_s(length)
            for _ in range(args.repeat):
                started = time.perf_counter()
                report = asyncio.run(
                    referee.evaluate(
                        DirectorySource(path=str(fork)),
                        target_sequence_length=length,
                        claimed_tokens_per_sec=None,
                    )
                )
                wall_s = time.perf_counter() - started
                after = honest.times_s(length)
                rows.append(_row(report, length, wall_s) | _differences(report, length, before, after))
                before = after
                print(f"{length:,}: {rows[-1]}", file=sys.stderr, flush=True)
    return rows


class _Honest:
    """The process that times the same files by CUDA events, when it is asked."""

    def __init__(self, tree: Path, device: str) -> None:
        command = [sys.executable, "-m", "benchmarks.referee.agreement", "--honest", str(tree)]
        self._process = subprocess.Popen(
            [*command, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def times_s(self, length: int) -> dict[str, float]:
        """Seconds of a call by how it was timed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{length}\n")
        self._process.stdin.flush()
        times: dict[str, float] = json.loads(self._process.stdout.readline())
        return times


def _differences(
    report: EvaluationReport, length: int, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """Milliseconds by every clock, and how far the referee's is from each."""
    found: dict[str, Any] = {}
    for name in before:
        found[f"{name}_ms"] = [round(1e3 * times[name], 4) for times in (before, after)]
    measured = report.figures.measured_tokens_per_sec
    yardstick = report.figures.evidence.get("yardstick")
    if measured is None or yardstick is None:
        return found
    referee_s = length / measured
    in_the_trials_s = 1e-9 * length * typical(yardstick["beside_ns_per_token"])
    found["in_the_trials_ms"] = round(1e3 * in_the_trials_s, 4)
    for name, seconds in {
        "difference": statistics.mean((before["in_a_row"], after["in_a_row"])),
        "difference_like_a_trial": statistics.mean((before["like_a_trial"], after["like_a_trial"])),
        "difference_from_one": statistics.mean((before["one"], after["one"])),
        "difference_in_the_trials": in_the_trials_s,
    }.items():
        found[name] = round(referee_s / seconds - 1.0, 4)
    return found


def _repeats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the verdicts of a length lie apart, as a share of the smallest."""
    found: dict[str, Any] = {}
    for length in dict.fromkeys(row["length"] for row in rows):
        figures = [row["referee_ms"] for row in rows if row["length"] == length]
        if None not in figures:
            apart = round(max(figures) / min(figures) - 1.0, 4)
            found[str(length)] = {"verdicts": len(figures), "apart": apart, "milliseconds": figures}
    return found


def _row(report: EvaluationReport, length: int, wall_s: float) -> dict[str, Any]:
    figures, evidence = report.figures, report.figures.evidence
    measured = figures.measured_tokens_per_sec
    return {
        "length": length,
        "status": figures.status.value,
        "reason": evidence.get("reason"),
        "gpu": figures.gpu,
        "versions": figures.versions,
        "referee_ms": None if measured is None else round(1e3 * length / measured, 4),
        "spread": figures.spread,
        "relative_error": figures.relative_error,
        "vram_mb": figures.vram_mb,
        "roofline_tokens_per_sec": evidence.get("roofline_tokens_per_sec"),
        "calls": evidence.get("calls"),
        "yardstick": evidence.get("yardstick"),
        "gpu_state": evidence.get("gpu_state"),
        "trial_s": evidence.get("trial_s"),
        "stage_s": evidence.get("stage_s"),
        "wall_s": round(wall_s, 2),
        "log_tail": evidence.get("log_tail"),
    }


def _serve_honest(tree: Path, device: str) -> None:
    """Answer each length on standard input with seconds of the exported operator, and of its origin."""
    import torch

    from kernels.benchmark import Benchmark, Drawn
    from kernels.chunk import chunk_quasar as ours
    from kernels.fork_base import write_fla_base
    from kernels.harness.buffers import MAX_CALLS
    from kernels.harness.inputs import Shape
    from roles.referee.drawing import TRIAL_S

    write_fla_base(tree)
    (tree / TARGET_DIR / "__init__.py").write_text("")
    sys.path.insert(0, str(tree))
    from fla.ops.quasar.chunk import chunk_quasar as exported

    benchmark = Benchmark(torch.device(device), repetitions=REPETITIONS)

    def run(x: Drawn) -> torch.Tensor:
        return exported(x.q, x.k, x.v, x.beta)[0]

    def in_a_row(calls: int, sets: int, *, chained: bool) -> float:
        # Drawing is what the GPU does between two trials of the referee: it is as warm as there.
        return typical(
            [
                time_calls(run, [benchmark.draw(shape) for _ in range(sets)], calls, chained=chained)
                for _ in range(REPETITIONS)
            ]
        )

    for line in sys.stdin:
        shape = Shape(batch=1, length=int(line), heads=8, dim=64, dtype="bfloat16")
        draws = [benchmark.draw(shape) for _ in range(4)]
        x = draws[0]
        assert torch.equal(ours(x.q, x.k, x.v, x.beta)[0], run(x)), "the exported operator differs"
        awake_at = time.monotonic() + WARM_UP_S
        while time.monotonic() < awake_at:
            run(x)
            torch.cuda.synchronize(device)
        times = {
            "one": statistics.median(benchmark.times(run, draws)),
            "one_of_ours": statistics.median(
                benchmark.times(lambda x: ours(x.q, x.k, x.v, x.beta)[0], draws),
            ),
        }
        del x, draws
        times["in_a_row"] = in_a_row(CALLS_IN_A_ROW, 4, chained=False)
        as_many = min(MAX_CALLS, math.ceil(TRIAL_S / times["in_a_row"]))
        times["like_a_trial"] = in_a_row(as_many, as_many, chained=True)
        # The referee looks at how much of the GPU's memory is taken, and shall find all that it needs.
        torch.cuda.empty_cache()
        print(json.dumps(times), flush=True)


def time_calls(run: Callable[[Any], Any], draws: list[Any], calls: int, *, chained: bool) -> float:
    """Seconds of a call that follows another; chained ones as in a trial, where each output stays."""
    import torch

    from kernels.harness.inputs import chained_beta

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    outputs: list[torch.Tensor] = []
    for number in range(1 + calls):
        x = draws[number % len(draws)]
        if outputs:
            x = replace(x, beta=chained_beta(x.beta, outputs[-1]))
        o = run(x)
        if chained:
            outputs.append(o)
        if number == 0:
            # Not before the first: the GPU waits for the launch of that.
            first.record()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / calls


if __name__ == "__main__":
    sys.exit(main())
