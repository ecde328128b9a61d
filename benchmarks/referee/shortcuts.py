"""How far shortcuts get on the inputs that the referee draws, with the roundings of our kernel.

    python -m benchmarks.referee.shortcuts --seq-len 65536 --seq-len 524288

Plain PyTorch on a CPU that goes through a sequence as kernels/chunk.py does: pieces side by side, of each the
map of the state that enters it, then the outputs. Operands are rounded to bfloat16 where those of the kernel
are. A shortcut has other maps: from the sum of k k^T alone, or with fewer columns, for the directions that
keys touch least beside those that only impulses do. Prints one JSON document.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from kernels.harness.accuracy import compare, reference_output, rounding_error
from kernels.harness.inputs import Inputs, Shape, draw_inputs
from kernels.reference import alpha
from protocol.rules import MAX_RELATIVE_TO_YARDSTICK

CHUNK = 16
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A sequence of one batch in pieces, with what maps their states."""

    q: torch.Tensor
    """As k and v [H, N, C, 16, D]: N pieces of C chunks."""
    k: torch.Tensor
    v: torch.Tensor
    inverse: torch.Tensor
    """[H, N, C, 16, 16]."""
    beta: torch.Tensor


Change = Callable[[torch.Tensor, Pieces], torch.Tensor]
"""Returns the transitions [H, N, D, D] of a shortcut, from those that are right."""


def unchanged(transitions: torch.Tensor, _pieces: Pieces) -> torch.Tensor:
    """No shortcut."""
    return transitions


def from_sums(_transitions: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    """The order of the tokens in a piece forgotten: exp(-beta sum k k^T)."""
    k = pieces.k.flatten(2, 3)
    return torch.linalg.matrix_exp(-pieces.beta[:, None, None, None] * k.mT @ k)


def of_columns(transitions: torch.Tensor, pieces: Pieces, *, count: int) -> torch.Tensor:
    """As if what enters lay along the D / 8 directions of impulses and the `count` that keys touch least."""
    k = pieces.k.flatten(1, 3)
    least = torch.linalg.eigh(k.mT @ k).eigenvectors[..., : k.shape[-1] // 8 + count]
    return transitions @ (least @ least.mT)[:, None]


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Round to bfloat16."""
    return x.bfloat16().float()


def cut(x: Inputs, count: int) -> Pieces:
    """Cut a sequence into `count` pieces of whole chunks, filled up with zeros."""
    length = x.q.shape[1]
    chunks = -(-length // (count * CHUNK))
    by_head = [tensor[0].float().transpose(0, 1) for tensor in (x.q, x.k, x.v)]
    gate = alpha(x.k[0].float(), x.beta).mT[..., None]
    padding = (0, 0, 0, count * chunks * CHUNK - length)
    q, k, v, gate = (
        torch.nn.functional.pad(tensor, padding).unflatten(1, (count, chunks, CHUNK))
        for tensor in (*by_head, gate)
    )
    system = torch.eye(CHUNK) + torch.tril(gate * (k @ k.mT), diagonal=-1)
    inverse = torch.linalg.solve_triangular(
        system, torch.diag_embed(gate[..., 0]), upper=False, unitriangular=True
    )
    return Pieces(q=q, k=k, v=v, inverse=rounded(inverse), beta=x.beta)


def output(x: Inputs, count: int, change: Change) -> torch.Tensor:
    """Return o [1, T, H, D] of a sequence in `count` pieces."""
    pieces = cut(x, count)
    q, k, v, inverse = pieces.q, pieces.k, pieces.v, pieces.inverse
    heads, _, chunks, _, dim = k.shape
    identity = torch.eye(dim)
    transitions = identity.expand(heads, count, dim, dim)
    additions = torch.zeros(heads, count, dim, dim)
    for c in range(chunks):
        keys, solve = k[:, :, c], inverse[:, :, c]
        written = solve @ (v[:, :, c] - rounded(keys @ rounded(additions)))
        additions = additions + keys.mT @ rounded(written)
        transitions = transitions - keys.mT @ rounded(solve @ rounded(keys @ rounded(transitions)))
    transitions = change(transitions, pieces)
    states = [torch.zeros(heads, dim, dim)]
    for transition, addition in zip(transitions.unbind(1), additions.unbind(1), strict=True):
        states.append(transition @ states[-1] + addition)
    state = torch.stack(states[:-1], dim=1)
    outputs = []
    for c in range(chunks):
        keys, queries, solve, held = k[:, :, c], q[:, :, c], inverse[:, :, c], rounded(state)
        written = rounded(solve @ v[:, :, c] - solve @ rounded(keys @ held))
        outputs.append(queries @ held + rounded(torch.tril(queries @ keys.mT)) @ written)
        state = state + keys.mT @ written
    o = torch.stack(outputs, dim=2).flatten(1, 3)[:, : x.q.shape[1]]
    return rounded(o.transpose(0, 1)[None])


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seq-len", type=int, action="append")
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--pieces", type=int, default=66, help="66: two heads for each processor of an H200")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> int:
    """Try each and print."""
    args = parse(sys.argv[1:])
    changes: dict[str, Change] = {"none": unchanged, "sums": from_sums}
    changes |= {f"{count} columns": partial(of_columns, count=count) for count in (24, 32, 40, 48)}
    rows: list[dict[str, Any]] = []
    for length in args.seq_len or [65_536]:
        shape = Shape(batch=1, length=length, heads=args.heads, dim=64, dtype="bfloat16")
        x = draw_inputs(shape, torch.Generator().manual_seed(args.seed))
        exact = reference_output(x, CPU)
        allowed = MAX_RELATIVE_TO_YARDSTICK * rounding_error(exact)
        for name, change in changes.items():
            accuracy = compare(output(x, args.pieces, change), exact)
            rows.append({"length": length, "shortcut": name, "allowed": allowed, **asdict(accuracy)})
    print(json.dumps({"torch": torch.__version__, "pieces": args.pieces, "rows": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
