"""The reference model's shape with seeded random weights, for measuring where it cannot be downloaded.

`python -m roles.inference.seeded_model PATH [--seed N]` writes Qwen2.5-0.5B's shape in float16 (1 GB). Only
that process loads torch.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from roles.inference.tiny_model import tiny_tokenizer
from roles.kernels_package import check_kernels_package

SHAPE: Final = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
"""Qwen2.5-0.5B-Instruct's configuration (source: its config.json)."""
STD: Final = 0.02
"""As Qwen2 is initialised before training."""


def write_seeded_model(path: Path, seed: int = 0) -> None:
    """Write the model and a tokenizer into the folder `path`; the same seed gives the same bytes."""
    check_kernels_package()
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SHAPE, bos_token_id=None, eos_token_id=None, dtype="float16")
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" in name:
                weights.fill_(1.0)
            elif weights.ndim == 1:
                weights.zero_()
            else:
                weights.normal_(0.0, STD, generator=random)
    model.to(torch.float16).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def main(argv: list[str] | None = None) -> int:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m roles.inference.seeded_model", description=__doc__)
    parser.add_argument("path", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    write_seeded_model(args.path, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
