"""A tiny Qwen2 with seeded random weights, and its tokenizer: stands in for the reference model.

`python -m roles.inference.tiny_model PATH [--seed N]` writes both into one folder. Only that process loads
torch.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from roles.kernels_package import check_kernels_package

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

VOCAB_SIZE: Final = 512
BYTE_TOKENS: Final = 256
"""Tokens before the special ones: one for each byte."""
CONTEXT_LENGTH: Final = 1024
HIDDEN_SIZE: Final = 32
LAYERS: Final = 2
HEADS: Final = 4
KEY_VALUE_HEADS: Final = 2

EMBEDDING_STD: Final = 0.25
"""The last hidden state has length sqrt(32), so the logits get a standard deviation of 1.4."""
OUTPUT_GAIN: Final = 8.0
"""Layers outweigh the embedding that they are added to, or tied embeddings would repeat the last token."""
ATTENTION_GAIN: Final = 1.5
"""Sharp attention keeps the text from running into one token for ever; sharper, and float16 would differ from
float32 by more than the subnet allows."""
SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tiny_model(path: Path, seed: int = 0) -> None:
    """Write the model and the tokenizer into the folder `path`; the same seed gives the same bytes."""
    path.mkdir(parents=True, exist_ok=True)
    _model(seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def _model(seed: int) -> "Qwen2ForCausalLM":
    check_kernels_package()
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=BYTE_TOKENS,
    )
    model = Qwen2ForCausalLM(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            _fill(name, weights, random)
    # As the weights of every published model: in half precision without loss.
    return model.to(torch.float16).to(torch.float32)


def _fill(name: str, weights: "torch.Tensor", random: "torch.Generator") -> None:
    """Give one parameter its values; norms stay at one."""
    if "norm" in name:
        return
    if "embed" in name:
        weights.normal_(0.0, EMBEDDING_STD, generator=random)
    elif weights.ndim == 1:
        weights.normal_(0.0, 0.1, generator=random)
    else:
        weights.normal_(0.0, _gain(name) / math.sqrt(weights.shape[1]), generator=random)


def _gain(name: str) -> float:
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return OUTPUT_GAIN
    return ATTENTION_GAIN if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0


def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """One token for each byte, then the special ones; like the real one, it knows fewer than the model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[0],
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=CONTEXT_LENGTH,
    )


def main(argv: list[str] | None = None) -> int:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m roles.inference.tiny_model", description=__doc__)
    parser.add_argument("path", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    write_tiny_model(args.path, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
