"""What the commands that time kernels in their own process share."""

import argparse
import os
from typing import TYPE_CHECKING, Final

from node.device_turns import BackgroundTurn
from protocol.errors import UsageError

if TYPE_CHECKING:
    from kernels.harness.inputs import Shape

LOCK_PATIENCE_S: Final = 600.0


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the shape."""
    parser.add_argument("--heads", type=int, help="heads (default: 8; on a CPU 2)")
    parser.add_argument("--head-dim", type=int, help="head dimension (default: 64; on a CPU 32)")


def check_counts(args: argparse.Namespace, *flags: str) -> None:
    """Raise UsageError for a flag below 1; one that is not given is fine."""
    for flag in flags:
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: must be at least 1")


def device_for_timing(device: str) -> BackgroundTurn:
    """Return the turn on a device, because measurements on one machine take turns.

    To be called before Triton is imported: on a CPU the kernels then run in its interpreter.
    """
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    return BackgroundTurn(device, timeout_s=LOCK_PATIENCE_S)


def shape_of(args: argparse.Namespace, device: str, *, length: int, batch: int = 1) -> "Shape":
    """Return the shape that the flags ask for: bfloat16 on a GPU, float32 and small on a CPU."""
    from kernels.harness.inputs import Shape

    is_gpu = device != "cpu"
    return Shape(
        batch=batch,
        length=length,
        heads=args.heads or (8 if is_gpu else 2),
        dim=args.head_dim or (64 if is_gpu else 32),
        dtype="bfloat16" if is_gpu else "float32",
    )
