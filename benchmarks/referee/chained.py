"""What makes a call of a trial longer for the GPU: inputs of its own, or the beta that is chained?

    python -m benchmarks.referee.chained

By CUDA events, in one process: our operator at 100,000 tokens on 4, 16 and 64 sets of inputs in turn, 8 and
64 calls one after another, with the beta that was drawn and with one that comes from the output before. Every
case comes twice, so that it shows if the GPU became slower. Prints one JSON document.
"""

import argparse
import itertools
import json
import sys
from typing import Any

import torch

from benchmarks.referee.agreement import time_calls
from kernels.benchmark import Benchmark, Drawn
from kernels.chunk import chunk_quasar
from kernels.harness.inputs import Shape
from roles.referee.quartiles import typical


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--device", default="cuda:0")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure and print."""
    args = parse(sys.argv[1:])
    benchmark = Benchmark(torch.device(args.device), repetitions=args.repetitions)
    shape = Shape(batch=1, length=100_000, heads=8, dim=64, dtype="bfloat16")

    def run(x: Drawn) -> torch.Tensor:
        return chunk_quasar(x.q, x.k, x.v, x.beta)[0]

    rows: list[dict[str, Any]] = []
    for sets, calls, chained in 2 * list(itertools.product((4, 16, 64), (8, 64), (False, True))):
        seconds = typical(
            [
                time_calls(run, [benchmark.draw(shape) for _ in range(sets)], calls, chained=chained)
                for _ in range(args.repetitions)
            ]
        )
        rows.append({"sets": sets, "calls": calls, "chained": chained, "ms": round(1e3 * seconds, 5)})
    print(json.dumps({"gpu": torch.cuda.get_device_name(args.device), "rows": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
