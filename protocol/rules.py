"""Every number of the competition in one place (source: seed, scoring and requirements sections)."""

from typing import Final

RULES_VERSION: Final = 1
"""Carried by every verdict; raised when a rule or the measuring toolchain changes."""

BLOCKS_UNTIL_REVEAL: Final = 100
"""Chain blocks between a commitment and the first height at which it may be revealed."""

REVEAL_WINDOW_BLOCKS: Final = 300
"""Blocks past the due height after which an unrevealed commitment expires."""

MIN_COSINE_SIMILARITY: Final = 0.99
MAX_ABS_DIFFERENCE: Final = 0.1
"""Both over float32, for logits and for kernel outputs."""

MAX_RELATIVE_TO_ROUNDING: Final = 4.0
"""How many times further than the reference's own float16 run a miner's logits may be from float32: wider
than another GPU, batch or implementation of attention needs, narrower than 8-bit weights need, which may
pass the two limits above."""

NEGLIGIBLE_ROUNDING: Final = 1e-4
"""A relative error of logits that is never too large, however little rounding did to the reference."""

MAX_RELATIVE_TO_YARDSTICK: Final = 3.0
"""A kernel whose error exceeds this multiple of the yardstick's is `inaccurate`: unranked, no strike."""

NEGLIGIBLE_RELATIVE_ERROR: Final = 1e-5
"""An error of float32 rounding is never `inaccurate`, however exact the yardstick."""

CLAIM_FRACTION: Final = 0.9
"""Measured throughput below this fraction of the claim scores zero."""

TIE_MARGIN: Final = 0.02
"""Scores closer than this fraction are a tie, and the earlier submission wins."""

REWARD_SHARES: Final = (0.60, 0.25, 0.10, 0.05)
MAX_SCORED_PER_ROUND: Final = 4
"""Scored submissions per hotkey and round."""

MAX_TARGET_SEQUENCE_LENGTH: Final = 1_048_576
ROUND_SECONDS: Final = 48 * 3600
LOGIT_PASS_SECONDS: Final = 24 * 3600
"""How long a passed logit check lasts."""

LOGIT_PENDING_SECONDS: Final = 6 * 3600
"""How long an unreachable inference server stays pending before it counts as failed."""

CHALLENGE_PROMPT_TOKENS: Final = 128
CHALLENGE_MAX_STEP: Final = 50

BAN_FAILURES: Final = 5
BAN_SECONDS: Final = 24 * 3600

MIN_SALT_BYTES: Final = 16
