"""The validator's reference: `python -m roles.validator.logit_worker NAME --device DEVICE`.

Methods: `info` (loads the model first) and `compare`, which reads a miner's answer in one forward pass
(teacher forcing: the reference does not generate) and says how far it is from the reference, and how far the
reference itself is in float16.
"""

import math
import sys
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from node.worker_main import serve
from protocol.errors import QuasarError
from protocol.logits import compare_logits, decode_logits, first_wrong
from roles.inference.worker import engine_loader, parse_arguments

if TYPE_CHECKING:
    from roles.inference.engine import Engine


def main(argv: list[str] | None = None) -> int:
    """Serve calls until the parent closes stdin."""
    engine = engine_loader(parse_arguments(argv, "roles.validator.logit_worker"))

    @cache
    def rounded() -> "Engine":
        return engine().in_float16()

    def info(_params: dict[str, Any]) -> dict[str, Any]:
        rounded()
        return {"model": engine().info(), "ordinary_tokens": engine().ordinary_tokens()}

    def compare(params: dict[str, Any]) -> dict[str, Any]:
        return judge(engine(), rounded(), params)

    serve({"info": info, "compare": compare})
    return 0


def judge(reference: "Engine", rounded: "Engine", params: dict[str, Any]) -> dict[str, Any]:
    """How far an answer is from the reference, and the reference itself in float16 (`rounded`).

    `params` has `prompt`, `tokens` `[G]`, `captured_logits`, `step` (1-indexed) and `tolerance`. Raises
    QuasarError when the reference cannot judge, InvalidMessage for logits of another size.
    """
    prompt, tokens, step = params["prompt"], params["tokens"], params["step"]
    read = reference.examine(prompt, tokens, step)
    captured = decode_logits(params["captured_logits"], len(read.logits))
    # Only up to the step: what comes after does not change it.
    rounding = compare_logits(read.logits, rounded.examine(prompt, tokens[:step], step).logits)
    if not math.isfinite(rounding.relative_error):
        raise QuasarError("the reference has no finite logits in float16: miners cannot be judged by it")
    wrong = first_wrong(read.gaps, params["tolerance"])
    return {
        "comparison": asdict(compare_logits(read.logits, captured)),
        "rounding": asdict(rounding),
        "wrong_index": wrong,
        "wrong_gap": None if wrong is None else read.gaps[wrong],
    }


if __name__ == "__main__":
    sys.exit(main())
