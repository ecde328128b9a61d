"""Commitments: both forms, and the window of the reveal."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.commitments import (
    CommitmentForm,
    bound_commitment_hash,
    match_commitment,
    new_salt,
    reveal_window,
    seed_commitment_hash,
)
from protocol.types import BlockHeight

SALT = "ab" * 16
URL = "https://github.com/miner/flash-linear-attention"
HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
COMMIT = "c" * 40

salts = st.binary(min_size=16, max_size=32).map(bytes.hex)
hotkeys = st.text(alphabet="123456789ABCDEFGHJKLMNPQRSTUVWXYZ", min_size=47, max_size=48)
commits = st.binary(min_size=20, max_size=20).map(bytes.hex)
urls = st.text(alphabet="abcxyz-.0", min_size=1, max_size=20).map("https://github.com/a/".__add__)
lengths = st.integers(1, 1_048_576)


def test_the_seed_form_is_the_hash_of_salt_and_url() -> None:
    assert seed_commitment_hash(SALT, URL) == hashlib.sha256((SALT + URL).encode()).hexdigest()


def test_the_bound_form_is_the_hash_of_its_text() -> None:
    text = f"{SALT}{HOTKEY}:100000:{URL}@{COMMIT}"
    assert (
        bound_commitment_hash(SALT, HOTKEY, 100_000, URL, COMMIT) == hashlib.sha256(text.encode()).hexdigest()
    )


def test_a_salt_is_sixteen_random_bytes_in_hex() -> None:
    assert new_salt(lambda count: bytes(range(count))) == "000102030405060708090a0b0c0d0e0f"
    assert new_salt() != new_salt()
    assert len(new_salt()) == 32


@given(salts, hotkeys, lengths, urls, commits)
def test_a_reveal_opens_its_own_commitment(
    salt: str, hotkey: str, length: int, url: str, commit: str
) -> None:
    def opened(commitment: str) -> CommitmentForm | None:
        return match_commitment(
            commitment,
            salt=salt,
            miner_hotkey=hotkey,
            target_sequence_length=length,
            fork_url=url,
            commit_hash=commit,
        )

    assert opened(bound_commitment_hash(salt, hotkey, length, url, commit)) is CommitmentForm.BOUND
    assert opened(seed_commitment_hash(salt, url)) is CommitmentForm.SEED
    assert opened("0" * 64) is None


@given(salts, hotkeys, lengths, urls, commits, st.integers(0, 4), st.data())
def test_the_bound_form_fixes_every_part(
    salt: str, hotkey: str, length: int, url: str, commit: str, part: int, data: st.DataObject
) -> None:
    parts: list[object] = [salt, hotkey, length, url, commit]
    drawn = data.draw([salts, hotkeys, lengths, urls, commits][part])
    changed = [*parts[:part], drawn, *parts[part + 1 :]]
    same = bound_commitment_hash(*parts) == bound_commitment_hash(*changed)  # type: ignore[arg-type]
    assert same is (parts == changed)


def test_an_upper_case_or_foreign_hash_opens_nothing() -> None:
    hash_ = bound_commitment_hash(SALT, HOTKEY, 100_000, URL, COMMIT).upper()
    for commitment in (hash_, "é" * 64, ""):
        form = match_commitment(
            commitment,
            salt=SALT,
            miner_hotkey=HOTKEY,
            target_sequence_length=100_000,
            fork_url=URL,
            commit_hash=COMMIT,
        )
        assert form is None


@pytest.mark.parametrize(
    ("height", "state", "left"),
    [(1000, "early", 100), (1099, "early", 1), (1100, "open", 0), (1399, "open", 0), (1400, "expired", 0)],
)
def test_the_window(height: int, state: str, left: int) -> None:
    window = reveal_window(BlockHeight(1000))
    assert (window.opens, window.expires) == (1100, 1400)
    assert window.state(BlockHeight(height)) == state
    assert window.blocks_left(BlockHeight(height)) == left


@given(st.integers(0, 10**9), st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 3000))
def test_a_window_is_passed_once_and_in_order(
    start: int, until: int, window_blocks: int, passed: int
) -> None:
    window = reveal_window(BlockHeight(start), until, window_blocks)
    order = ["early", "open", "expired"]
    now = window.state(BlockHeight(start + passed))
    later = window.state(BlockHeight(start + passed + 1))
    assert order.index(now) <= order.index(later)
    assert (now == "early") is (window.blocks_left(BlockHeight(start + passed)) > 0)
    assert (now == "open") is (until <= passed < until + window_blocks)
