"""When a devnet counts as settled, and what is shown on the way there."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from protocol.messages import LeaderboardRow, StoredVerdict, SubmissionDetail
from protocol.types import BlockHeight, Coldkey, Hotkey
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.devnet.layout import Layout, Member
from roles.devnet.observer import Snapshot, Standing
from roles.devnet.report import Screen, document, table

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def member(name: str, role: str = "miner") -> Member:
    return Member(
        name=name, role=role, folder=Path("/d") / name, hotkey=Hotkey(f"hot-{name}"), coldkey=Coldkey("cold")
    )


FAST, SLOW, WRONG = (member(name) for name in ("fast", "slow", "wrong"))
LAYOUT = Layout(
    root=Path("/d"),
    api_url="http://127.0.0.1:1",
    api=member("api", "api"),
    validator=member("validator", "validator"),
    fast=FAST,
    slow=SLOW,
    wrong=WRONG,
)


def verdict(status: Status) -> StoredVerdict:
    return StoredVerdict(
        validator_hotkey="hot-validator",
        status=status,
        fault=Fault.NOBODY,
        measured_tokens_per_sec=2000.0 if status is Status.PASSED else None,
        spread=None,
        cosine_similarity=None,
        max_abs_diff=None,
        relative_error=None,
        vram_mb=None,
        gpu="cpu",
        versions={},
        rules_version=1,
        evidence={},
        signature="00",
        created_at=NOW,
    )


def submission(number: int, **changes: Any) -> SubmissionDetail:
    fields: dict[str, Any] = {
        "submission_id": number,
        "miner_hotkey": "hot",
        "state": "judged",
        "fork_url": None,
        "commit_hash": None,
        "target_sequence_length": 100_000,
        "league": "100k",
        "claimed_tokens_per_sec": 1000.0,
        "commit_block": 7,
        "reveal_block": 107,
        "expires_block": 3107,
        "code_fixed_at": NOW,
        "created_at": NOW,
        "rank": None,
        "logit_outcome": LogitOutcome.PASSED,
        "verdicts": [verdict(Status.PASSED)],
    }
    return SubmissionDetail(**{**fields, **changes})


def row(place: int, miner: Member) -> LeaderboardRow:
    return LeaderboardRow(
        place=place,
        submission_id=place,
        miner_hotkey=miner.hotkey,
        league="100k",
        target_sequence_length=100_000,
        tokens_per_sec=2000.0,
        weighted_score=1000.0,
        share=0.6,
        code_fixed_at=NOW,
    )


def snapshot(**changes: Any) -> Snapshot:
    """Everybody judged and paid."""
    weights = {FAST.hotkey: 60 / 85, SLOW.hotkey: 25 / 85}
    wrong = submission(3, verdicts=[verdict(Status.WRONG_OUTPUT)], logit_outcome=LogitOutcome.PENDING)
    standings = (
        Standing(miner=FAST, submission=submission(1, rank=1), weight=weights[FAST.hotkey]),
        Standing(miner=SLOW, submission=submission(2, rank=2), weight=weights[SLOW.hotkey]),
        Standing(miner=WRONG, submission=wrong, weight=0.0),
    )
    settled = Snapshot(
        height=BlockHeight(300), standings=standings, ranking=(row(1, FAST), row(2, SLOW)), weights=weights
    )
    return replace(settled, **changes)


def test_settled_when_the_chain_pays_what_the_ranking_says() -> None:
    assert snapshot().is_settled


def with_first(**changes: Any) -> Snapshot:
    first, *others = snapshot().standings
    return snapshot(standings=(replace(first, **changes), *others))


@pytest.mark.parametrize(
    "unsettled",
    [
        with_first(submission=None),
        with_first(submission=submission(1, state="evaluating", verdicts=[])),
        with_first(submission=submission(1, logit_outcome=LogitOutcome.PENDING)),
        snapshot(weights={}),
        snapshot(weights={FAST.hotkey: 1.0}),
        snapshot(weights={FAST.hotkey: 25 / 85, SLOW.hotkey: 60 / 85}),
        snapshot(ranking=()),
        snapshot(ranking=(row(1, FAST),), weights={FAST.hotkey: 1.0}),
    ],
    ids=["uncommitted", "unjudged", "unchecked", "unpaid", "one paid", "reversed", "unranked", "half read"],
)
def test_unsettled(unsettled: Snapshot) -> None:
    assert not unsettled.is_settled


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        (None, "measures its kernel"),
        (submission(1, state="committed", reveal_block=310), "committed, reveal in 10 blocks"),
        (submission(1, state="committed", reveal_block=300), "pushes and reveals"),
        (submission(1, state="queued", verdicts=[]), "revealed, waits for a validator"),
        (submission(1, state="evaluating", verdicts=[]), "is being judged"),
        (submission(1, state="expired", verdicts=[]), "expired"),
        (submission(1), "passed, logits passed"),
        (submission(1, verdicts=[verdict(Status.TAMPERED)]), "tampered"),
    ],
)
def test_where_a_miner_stands(detail: SubmissionDetail | None, text: str) -> None:
    assert Standing(miner=FAST, submission=detail, weight=0.0).text(BlockHeight(300)) == text


def test_without_a_terminal_only_changes_are_printed() -> None:
    out = io.StringIO()
    committed = submission(1, state="committed", verdicts=[])
    with Screen(Console(file=out, width=200)) as screen:
        for height in (8, 9, 10):
            moment = with_first(submission=committed, weight=0.0)
            screen.show(replace(moment, height=BlockHeight(height)))
        screen.show(snapshot())
    lines = out.getvalue().splitlines()
    assert lines[0] == "block     8  fast     committed at block 7"
    assert sum("fast     " in line for line in lines) == 2
    assert any("weights" in line and "fast 0.706, slow 0.294" in line for line in lines)


def test_table_fits_eighty_columns_without_breaking_a_line() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(table(snapshot()))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "passed, logits passed" in text
    assert "0.7059" in text


def test_document_has_what_programs_were_promised() -> None:
    found = document(snapshot(), LAYOUT, 61.23)
    assert set(found) == {"ranking", "weights", "verdicts", "api", "seconds"}
    assert [one["miner"] for one in found["ranking"]] == ["fast", "slow"]
    assert [(one["miner"], one["status"]) for one in found["verdicts"]] == [
        ("fast", "passed"),
        ("slow", "passed"),
        ("wrong", "wrong_output"),
    ]
    assert found["weights"] == {"hot-fast": 60 / 85, "hot-slow": 25 / 85}
    assert (found["api"], found["seconds"]) == ("http://127.0.0.1:1", 61.2)
