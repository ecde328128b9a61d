"""An hour of random valid and invalid requests to the inference server: is its memory flat?

    python -m benchmarks.inference --minutes 60 --requests 18000

On a CPU with the tiny model, unless `--model` and `--device` say otherwise. Every answer must have one of the
statuses that the request allows; resident memory of the server and of the model's process is written down
sixty times. Prints one JSON document; 1 when a status was another one.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from roles.inference.benchmark_server import MiB, memory_bytes, soak
from roles.inference.benchmark_target import serving

SAMPLES = 60
MAX_GEN_LEN = 64


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.inference", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=18_000, help="in all, evenly spread")
    parser.add_argument("--model", help="name or folder of a causal language model")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Send the requests, and take samples of the memory between them."""
    count = max(1, args.requests // SAMPLES)
    gap_s = 60.0 * args.minutes / (count * SAMPLES)
    statuses: dict[str, int] = {}
    unexpected: set[int] = set()
    memory: dict[str, list[float]] = {}
    async with serving(folder, args.model, args.device, max_gen_len=MAX_GEN_LEN) as target:
        for _ in range(SAMPLES):
            part = await soak(target, count, gap_s=gap_s)
            for status, number in part["statuses"].items():
                statuses[status] = statuses.get(status, 0) + number
            unexpected |= set(part["unexpected_statuses"])
            for name, size in memory_bytes(target).items():
                memory.setdefault(name, []).append(round(size / MiB, 2))
    return {
        "minutes": args.minutes,
        "requests": count * SAMPLES,
        "statuses": dict(sorted(statuses.items())),
        "unexpected_statuses": sorted(unexpected),
        "memory_mib": memory,
    }


def main() -> int:
    """Measure and print."""
    args = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            args.model = f"{folder}/model"
            subprocess.run([sys.executable, "-m", "roles.inference.tiny_model", args.model], check=True)
        found = asyncio.run(measure(args, Path(folder)))
    print(json.dumps(found))
    return 1 if found["unexpected_statuses"] else 0


if __name__ == "__main__":
    sys.exit(main())
