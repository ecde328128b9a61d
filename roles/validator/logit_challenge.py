"""A random question to one miner, drawn for it alone and never asked twice."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocol.rules import CHALLENGE_MAX_STEP, CHALLENGE_PROMPT_TOKENS

MIN_GEN_LEN: Final = 16
"""Shorter answers would say little about throughput."""
MAX_GEN_LEN: Final = 64


@dataclass(frozen=True, slots=True)
class Challenge:
    """Continue `prompt` by `gen_len` tokens and show the distribution of token `step` (1-indexed)."""

    prompt: tuple[int, ...]
    gen_len: int
    step: int
    nonce: str


def draw_challenge(ordinary_tokens: Sequence[int], source: random.Random) -> Challenge:
    """Draw a challenge; `ordinary_tokens` are the token ids that stand for text."""
    step = source.randint(1, CHALLENGE_MAX_STEP)
    return Challenge(
        prompt=tuple(source.choices(ordinary_tokens, k=CHALLENGE_PROMPT_TOKENS)),
        gen_len=source.randint(max(step, MIN_GEN_LEN), MAX_GEN_LEN),
        step=step,
        nonce=f"{source.getrandbits(128):032x}",
    )
