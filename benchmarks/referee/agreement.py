"""How far the referee's figure for our own operator is from CUDA events in an honest process.

    python -m benchmarks.referee.agreement --seq-len 100000 --seq-len 1000000 --repeat 3

For every length the exported fork is judged by the referee, through the real sandbox, and then timed by CUDA
events in a process that imports the very same files: one call after a pause, with nothing of its inputs in
the L2 cache, and calls in a row as the referee makes them. `difference` is that of the referee's figure from
calls in a row, `difference_from_one` from one call. Prints one JSON document.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    parser.add_argument("--seq-len", type=int, action="append", required=True)
    parser.add_argument("--repeat", type=int, default=1, help="verdicts for each length")
    parser.add_argument("--trials", type=int, default=20, help="timed trials of each verdict")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--honest", metavar="TREE", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Measure and print; 1 when a verdict was not `passed`."""
    args = parse(sys.argv[1:])
    if args.honest is not None:
        print(json.dumps(_timed_by_events(Path(args.honest), args.seq_len, args.device)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = _compare(Path(folder), args)
    print(json.dumps({"rows": rows}, indent=2))
    return 0 if all(row["status"] == "passed" for row in rows) else 1


def _compare(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    fork = folder / "fork"
    (fork / TARGET_DIR).mkdir(parents=True)
    for name, text in export_files("chunk").items():
        (fork / TARGET_DIR / name).write_text(text)
    settings = Settings.model_validate(
        {
            "node": {"device": args.device},
            "evaluation": {"trials_max": args.trials, "trials_min": min(5, args.trials)},
        }
    )
    referee = Referee(settings, folder / "data")
    rows = []
    for length in args.seq_len:
        for _ in range(args.repeat):
            started = time.perf_counter()
            report = asyncio.run(
                referee.evaluate(
                    DirectorySource(path=str(fork)),
                    target_sequence_length=length,
                    claimed_tokens_per_sec=None,
                )
            )
            rows.append(_row(report, length, time.perf_counter() - started))
            print(f"{length:,}: {rows[-1]}", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.referee.agreement",
        "--honest",
        str(fork),
        "--device",
        args.device,
    ]
    for length in args.seq_len:
        command += ["--seq-len", str(length)]
    honest = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    for row in rows:
        times = honest[str(row["length"])]
        row |= {f"{name}_ms": round(1e3 * seconds, 4) for name, seconds in times.items()}
        if row["referee_ms"] is not None:
            row["difference"] = round(row["referee_ms"] / row["in_a_row_ms"] - 1.0, 4)
            row["difference_from_one"] = round(row["referee_ms"] / row["one_ms"] - 1.0, 4)
    return rows


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


def _timed_by_events(tree: Path, lengths: list[int], device: str) -> dict[str, dict[str, float]]:
    """Seconds of the exported operator, and of the one it was exported from, by length."""
    import torch

    from kernels.benchmark import Benchmark, Drawn
    from kernels.chunk import chunk_quasar as ours
    from kernels.fork_base import write_fla_base
    from kernels.harness.inputs import Shape

    write_fla_base(tree)
    (tree / TARGET_DIR / "__init__.py").write_text("")
    sys.path.insert(0, str(tree))
    from fla.ops.quasar.chunk import chunk_quasar as exported

    benchmark = Benchmark(torch.device(device), repetitions=REPETITIONS)
    found = {}
    for length in lengths:
        shape = Shape(batch=1, length=length, heads=8, dim=64, dtype="bfloat16")
        draws = [benchmark.draw(shape) for _ in range(4)]
        assert torch.equal(
            ours(draws[0].q, draws[0].k, draws[0].v, draws[0].beta)[0],
            exported(draws[0].q, draws[0].k, draws[0].v, draws[0].beta)[0],
        ), "the exported operator gives another result"

        def run(x: Drawn) -> torch.Tensor:
            return exported(x.q, x.k, x.v, x.beta)[0]

        awake_at = time.monotonic() + WARM_UP_S
        while time.monotonic() < awake_at:
            run(draws[0])
            torch.cuda.synchronize(device)
        found[str(length)] = {
            "one": statistics.median(benchmark.times(run, draws)),
            "in_a_row": typical([_in_a_row(run, draws) for _ in range(REPETITIONS)]),
            "one_of_ours": statistics.median(
                benchmark.times(lambda x: ours(x.q, x.k, x.v, x.beta)[0], draws),
            ),
        }
    return found


def _in_a_row(run: Callable[[Any], Any], draws: list[Any]) -> float:
    """Seconds of a call that follows others."""
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(1 + CALLS_IN_A_ROW):
        run(draws[number % len(draws)])
        if number == 0:
            first.record()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / CALLS_IN_A_ROW


if __name__ == "__main__":
    sys.exit(main())
