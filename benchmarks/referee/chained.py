"""What makes a call of a trial longer for the GPU: the inputs of its own, or the beta that is chained?

    python -m benchmarks.referee.chained

By CUDA events, in one process: our operator at 100,000 tokens on 4, 16 and 64 sets of inputs in turn, 8 and
64 calls one after another, with the beta that was drawn and with one that comes from the output before. Prints
a line for each, milliseconds of a call; every case comes twice, so that it shows if the GPU became slower.
"""

import sys

import torch

from benchmarks.referee.agreement import time_calls
from kernels.benchmark import Benchmark, Drawn
from kernels.chunk import chunk_quasar
from kernels.harness.inputs import Shape
from roles.referee.quartiles import typical

REPETITIONS = 9


def main() -> int:
    """Measure and print."""
    benchmark = Benchmark(torch.device("cuda:0"), repetitions=REPETITIONS)
    shape = Shape(batch=1, length=100_000, heads=8, dim=64, dtype="bfloat16")

    def run(x: Drawn) -> torch.Tensor:
        return chunk_quasar(x.q, x.k, x.v, x.beta)[0]

    for sets, calls, chained in 2 * [(s, c, b) for s in (4, 16, 64) for c in (8, 64) for b in (False, True)]:
        seconds = typical(
            [
                time_calls(run, [benchmark.draw(shape) for _ in range(sets)], calls, chained=chained)
                for _ in range(REPETITIONS)
            ]
        )
        print(
            f"{sets:2} sets, {calls:2} calls, {'chained' if chained else 'drawn'}: {1e3 * seconds:.4f} ms",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
