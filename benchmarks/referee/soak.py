"""Many evaluations in a row, and what they leave behind: processes, files, memory.

    python -m benchmarks.referee.soak --evaluations 200

Every one is a referee process with a sandbox of its own, as a validator starts it. Prints one JSON document;
1 when something is left, or a verdict was not `passed`.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kernels.export import export_files
from node.sandbox import STAGE_PREFIX, STAGES
from node.settings_model import Settings
from protocol.forks import TARGET_DIR
from protocol.messages import DirectorySource
from roles.evaluation import Referee

WARM_UP = 5
"""Evaluations after which memory is counted from: the first ones import and allocate what stays."""
ALLOWED_GROWTH_KB = 4096


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the evaluations and print what they left."""
    args = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(_run(Path(folder), args))
    print(json.dumps(result, indent=2))
    return 1 if result["problems"] else 0


async def _run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    fork = folder / "fork"
    (fork / TARGET_DIR).mkdir(parents=True)
    for name, text in export_files("chunk").items():
        (fork / TARGET_DIR / name).write_text(text)
    settings = Settings.model_validate(
        {"node": {"device": args.device}, "evaluation": {"trials_min": 2, "trials_max": 2}}
    )
    referee = Referee(settings, folder / "data")
    verdicts: Counter[str] = Counter()
    seconds: list[float] = []
    memory_kb: list[int] = []
    before = _left(folder)
    for number in range(args.evaluations):
        started = time.perf_counter()
        report = await referee.evaluate(
            DirectorySource(path=str(fork)),
            target_sequence_length=args.seq_len,
            claimed_tokens_per_sec=None,
        )
        seconds.append(time.perf_counter() - started)
        verdicts[report.figures.status.value] += 1
        memory_kb.append(_resident_kb())
        if number == WARM_UP:
            before = _left(folder)
        print(f"{number + 1}: {report.figures.status.value} in {seconds[-1]:.1f} s", file=sys.stderr)
    after = _left(folder)
    growth_kb = memory_kb[-1] - memory_kb[min(WARM_UP, len(memory_kb) - 1)]
    problems = [
        f"{name}: {before[name]}, then {count}" for name, count in after.items() if count > before[name]
    ]
    if set(verdicts) != {"passed"}:
        problems.append(f"verdicts: {dict(verdicts)}")
    if growth_kb > ALLOWED_GROWTH_KB:
        problems.append(f"memory grew by {growth_kb} kB")
    return {
        "evaluations": args.evaluations,
        "verdicts": dict(verdicts),
        "median_s": round(statistics.median(seconds), 2),
        "before": before,
        "after": after,
        "memory_growth_kb": growth_kb,
        "problems": problems,
    }


def _left(folder: Path) -> dict[str, int]:
    """Count what could be left behind."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return {
        "children": len(children),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "files": sum(1 for path in (folder / "data").rglob("*") if path.is_file()),
        "staging_folders": sum(1 for _ in STAGES.glob(f"{STAGE_PREFIX}*")),
    }


def _resident_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
