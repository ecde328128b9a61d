"""The validator's reference: `python -m roles.validator.logit_worker NAME --device DEVICE`.

Methods: `info` (loads the model first) and `compare`, which reads a miner's answer in one forward pass
(teacher forcing: the reference does not generate) and says how far it is from the reference.
"""

import sys
from typing import Any

from node.worker_main import serve
from protocol.logits import compare_logits, decode_logits, tokens_match
from roles.inference.worker import engine_loader, parse_arguments


def main(argv: list[str] | None = None) -> int:
    """Serve calls until the parent closes stdin."""
    engine = engine_loader(parse_arguments(argv, "roles.validator.logit_worker"))

    def info(_params: dict[str, Any]) -> dict[str, Any]:
        return {"model": engine().info(), "ordinary_tokens": engine().ordinary_tokens()}

    def compare(params: dict[str, Any]) -> dict[str, Any]:
        tokens: list[int] = params["tokens"]
        reference = engine().read(params["prompt"], tokens)
        captured = decode_logits(params["captured_logits"], reference.shape[1])
        comparison = compare_logits(reference[params["step"] - 1], captured)
        wrong = tokens_match(tokens, reference, params["tolerance"])
        gap = None if wrong is None else float(reference[wrong].max() - reference[wrong, tokens[wrong]])
        return {
            "cosine_similarity": comparison.cosine_similarity,
            "max_abs_diff": comparison.max_abs_diff,
            "relative_error": comparison.relative_error,
            "wrong_index": wrong,
            "wrong_gap": gap,
        }

    serve({"info": info, "compare": compare})
    return 0


if __name__ == "__main__":
    sys.exit(main())
