"""Commit-reveal: the salted hash that a miner sends first, and the blocks in which it may be revealed."""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from protocol.rules import BLOCKS_UNTIL_REVEAL, MIN_SALT_BYTES, REVEAL_WINDOW_BLOCKS
from protocol.types import BlockCount, BlockHeight


class CommitmentForm(StrEnum):
    """What a commitment fixes."""

    SEED = "seed"
    """sha256(salt + fork_url): neither the code nor its owner; timed by its reveal."""
    BOUND = "bound"
    """Miner, target length, fork URL and commit: timed by its commit."""


def new_salt(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Draw a fresh salt: lower-case hex of `MIN_SALT_BYTES` random bytes."""
    return random_bytes(MIN_SALT_BYTES).hex()


def seed_commitment_hash(salt: str, fork_url: str) -> str:
    """Hash in the seed's form: lower-case hex SHA-256 over the UTF-8 text `salt + fork_url`."""
    return _sha256(salt + fork_url)


def bound_commitment_hash(
    salt: str, miner_hotkey: str, target_sequence_length: int, fork_url: str, commit_hash: str
) -> str:
    """Hash in the bound form: it fixes the owner, the target length and the very commit."""
    return _sha256(f"{salt}{miner_hotkey}:{int(target_sequence_length)}:{fork_url}@{commit_hash}")


def match_commitment(
    commitment_hash: str,
    *,
    salt: str,
    miner_hotkey: str,
    target_sequence_length: int,
    fork_url: str,
    commit_hash: str,
) -> CommitmentForm | None:
    """Find the form in which a reveal opens a commitment; None when it opens it in none."""
    bound = bound_commitment_hash(salt, miner_hotkey, target_sequence_length, fork_url, commit_hash)
    if _equal(commitment_hash, bound):
        return CommitmentForm.BOUND
    if _equal(commitment_hash, seed_commitment_hash(salt, fork_url)):
        return CommitmentForm.SEED
    return None


@dataclass(frozen=True, slots=True)
class RevealWindow:
    """The heights at which a commitment may be revealed: `opens <= height < expires`."""

    opens: BlockHeight
    """First height at which a reveal is taken."""
    expires: BlockHeight
    """First height at which it no longer is."""

    def state(self, height: BlockHeight) -> Literal["early", "open", "expired"]:
        """Tell where a height lies."""
        if height < self.opens:
            return "early"
        return "open" if height < self.expires else "expired"

    def blocks_left(self, height: BlockHeight) -> BlockCount:
        """Count the blocks until the window opens; 0 once it has."""
        return BlockCount(max(0, self.opens - height))


def reveal_window(
    commit_block: BlockHeight,
    blocks_until_reveal: int = BLOCKS_UNTIL_REVEAL,
    window_blocks: int = REVEAL_WINDOW_BLOCKS,
) -> RevealWindow:
    """Compute the reveal window of a commitment taken at `commit_block`."""
    opens = BlockHeight(commit_block + blocks_until_reveal)
    return RevealWindow(opens=opens, expires=BlockHeight(opens + window_blocks))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
