"""The process that holds the miner's model: `python -m roles.inference.worker NAME --device DEVICE`.

Methods: `info` (loads the model first); `warm_up`, called until it says that it is done, which captures what
decoding replays; `generate` and `resume`, which work on one answer for a slice of time and say whether it is
done. An answer that is not resumed is dropped by the next `generate`.
"""

import argparse
import sys
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from node.worker_main import serve
from protocol.logits import encode_logits, logits_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from roles.inference.decoding import Generation
    from roles.inference.engine import Engine
    from roles.inference.warm_up import Progress


def parse_arguments(argv: list[str] | None, prog: str) -> argparse.Namespace:
    """The command line of a process that holds a model."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description="Holds a language model.")
    parser.add_argument("model", help="name or folder of a causal language model")
    parser.add_argument("--device", required=True, help="cpu or cuda:<n>")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--dtype", choices=("auto", "float32"), default="auto")
    return parser.parse_args(argv)


def engine_loader(args: argparse.Namespace) -> "Callable[[], Engine]":
    """A function that loads the model at its first call and keeps it.

    Not before `serve`: what libraries print while they load must not spoil the first answer, and a model
    that is not there is a refusal with a sentence, not a dead process.
    """

    @cache
    def engine() -> "Engine":
        from roles.inference.engine import Engine

        return Engine.load(
            args.model, args.device, trust_remote_code=args.trust_remote_code, dtype=args.dtype
        )

    return engine


def main(argv: list[str] | None = None) -> int:
    """Serve calls until the parent closes stdin."""
    engine = engine_loader(parse_arguments(argv, "roles.inference.worker"))

    def info(_params: dict[str, Any]) -> dict[str, Any]:
        return engine().info()

    @cache
    def warming() -> "Iterator[Progress]":
        return engine().warm_up()

    def warm_up(_params: dict[str, Any]) -> dict[str, Any]:
        progress = next(warming(), None)
        if progress is None:
            return {"done": True, "decoding": engine().decoding, "warning": engine().warning}
        return {"done": False, **asdict(progress)}

    def generate(params: dict[str, Any]) -> dict[str, Any]:
        engine().begin(params["prompt"], params["gen_len"], params["logits_at_step"])
        return resume(params)

    def resume(params: dict[str, Any]) -> dict[str, Any]:
        return document(engine().advance(params["budget_s"]))

    serve({"info": info, "warm_up": warm_up, "generate": generate, "resume": resume})
    return 0


def document(generation: "Generation | None") -> dict[str, Any]:
    """What the parent is told of an answer."""
    if generation is None:
        return {"done": False}
    captured = generation.captured_logits
    return {
        "done": True,
        "tokens": generation.tokens,
        "captured_logits": None if captured is None else encode_logits(captured.numpy()),
        "captured_logits_sha256": "" if captured is None else logits_digest(captured.numpy()),
        "elapsed_sec": generation.elapsed_s,
    }


if __name__ == "__main__":
    sys.exit(main())
