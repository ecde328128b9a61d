"""Places, reasons, paths, the plot and numbers, without an API."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from protocol.messages import SubmissionDetail
from protocol.ranking import Compared, Entry, Place, rank
from protocol.rules import MAX_SCORED_PER_ROUND
from protocol.types import BlockHeight, Hotkey, SubmissionId
from protocol.verdicts import LogitOutcome, Status
from roles.api.page import plot, texts
from roles.api.page.path import Outcome, path_of
from roles.api.page.ranking import Ranking

START = datetime(2026, 1, 1, tzinfo=UTC)
HEIGHT = BlockHeight(1000)
PASSED = Outcome(Status.PASSED, 10.0)


def entry(number: int, speed: float, *, target: int = 1_000_000, hotkey: str = "") -> Entry:
    """A rankable submission; later numbers are later in time."""
    return Entry(
        submission_id=SubmissionId(number),
        hotkey=Hotkey(hotkey or f"miner{number}"),
        target_sequence_length=target,
        tokens_per_sec=speed,
        code_fixed_at=START + timedelta(minutes=number),
    )


def detail(number: int, **changes: Any) -> SubmissionDetail:
    """A judged submission."""
    values: dict[str, Any] = {
        "submission_id": number,
        "miner_hotkey": f"miner{number}",
        "state": "judged",
        "fork_url": "https://github.com/miner/fork",
        "commit_hash": "ab" * 20,
        "target_sequence_length": 1_000_000,
        "league": "1M",
        "claimed_tokens_per_sec": 1000.0,
        "commit_block": 800,
        "reveal_block": 900,
        "expires_block": 1200,
        "code_fixed_at": START,
        "created_at": START,
        "rank": None,
        "logit_outcome": LogitOutcome.PASSED,
        "verdicts": [],
    }
    return SubmissionDetail.model_validate(values | changes)


def measured(entries: Sequence[Entry]) -> Sequence[Place]:
    """The places when re-runs have confirmed every lead."""
    confirmed = [
        Compared(later=one.submission_id, earlier=SubmissionId(0), counts=True, earlier_score=math.inf)
        for one in entries
    ]
    return rank(entries, confirmed).places


def ranking(entries: Sequence[Entry] = (), **changes: Any) -> Ranking:
    """A ranking of entries, everybody registered and verified."""
    values: dict[str, Any] = {
        "places": measured(entries),
        "logits": {one.hotkey: LogitOutcome.PASSED for one in entries},
        "registered": None,
        "netuid": 24,
        "height": HEIGHT,
    }
    return Ranking(**(values | changes))


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PASSED])
def test_every_status_without_a_rank_has_a_reason(status: Status) -> None:
    told = ranking().why_submission(detail(1), Outcome(status, None))
    assert told.startswith("Not ranked: ")
    assert told.endswith(".")
    assert len(told) > 30


def test_first_place_says_what_it_earns_and_nothing_to_pass() -> None:
    told = ranking([entry(1, 100.0), entry(2, 50.0)]).why_submission(detail(1), PASSED)
    assert told == (
        "Place 1: 100.0 tokens/s times 3 for the 1M league make a weighted score of 300.0; it earns 60 % of "
        "the reward."
    )


def test_tie_is_told_with_the_score_that_counts() -> None:
    told = ranking([entry(1, 100.0), entry(2, 101.0)]).why_submission(detail(2), PASSED)
    assert "it counts as 300.0, because it lies within 2 % of an earlier submission" in told
    assert "passing place 1 takes more than 306.0, here 102.0 tokens/s" in told


def test_what_passing_takes_really_passes() -> None:
    entries = [
        entry(number, 100.0 * number, target=length) for number, length in ((1, 1_000_000), (2, 250_000))
    ]
    shown = ranking(entries)
    needed = shown.score_to_pass(shown.places[0])
    too_slow, fast_enough = (needed / 3.0 * factor for factor in (0.9999, 1.0001))
    assert measured([*entries, entry(9, too_slow)])[0].entry.submission_id != 9
    assert measured([*entries, entry(9, fast_enough)])[0].entry.submission_id == 9


def led(entries: Sequence[Entry], *compared: Compared) -> Ranking:
    """A ranking with these re-runs and no others."""
    order = rank(entries, compared)
    return ranking(entries, places=order.places, open_leads=order.open_leads, waiting=order.waiting)


def test_a_lead_that_waits_for_its_rerun_is_told() -> None:
    shown = led([entry(1, 100.0), entry(2, 110.0)])
    told = shown.why_submission(detail(2), PASSED)
    assert "it stays behind until a re-run of both in turn confirms its lead over submission 1" in told
    assert "passing place" not in told


def test_a_lead_that_waits_while_an_older_submission_holds_the_place_is_told() -> None:
    shown = led([entry(1, 100.0, hotkey="miner1"), entry(2, 110.0, hotkey="miner1")])
    told = shown.why_submission(detail(2, miner_hotkey="miner1"), PASSED)
    assert told == (
        "Not ranked: the kernel passed, but it waits until a re-run of both in turn confirms its lead over "
        "submission 1."
    )


def test_a_lead_that_a_rerun_did_not_confirm_is_told() -> None:
    tie = Compared(later=SubmissionId(2), earlier=SubmissionId(1), counts=False, earlier_score=300.0)
    told = led([entry(1, 100.0), entry(2, 110.0)], tie).why_submission(detail(2), PASSED)
    assert "it counts as 300.0, because a re-run confirmed no lead of more than 2 %" in told


def test_fifth_place_earns_nothing() -> None:
    shown = ranking([entry(number, 100.0 - 10 * number) for number in range(1, 6)])
    told = shown.why_submission(detail(5), PASSED)
    assert told.endswith("only the first 4 earn.")


def test_better_submission_of_the_same_hotkey_is_named() -> None:
    shown = ranking([entry(1, 100.0, hotkey="miner1"), entry(2, 50.0, hotkey="miner1")])
    told = shown.why_submission(detail(2, miner_hotkey="miner1"), PASSED)
    assert "submission 1 of the same hotkey holds place 1" in told


def test_failed_logits_are_told() -> None:
    shown = ranking(logits={Hotkey("miner1"): LogitOutcome.FAILED})
    assert "failed verification" in shown.why_submission(detail(1), PASSED)


def test_submission_beyond_the_scored_ones_of_a_round_is_told() -> None:
    shown = ranking(logits={Hotkey("miner9"): LogitOutcome.PASSED})
    told = shown.why_submission(detail(9), PASSED)
    assert f"only the first {MAX_SCORED_PER_ROUND} scored submissions" in told


def test_miner_without_rank_hears_of_its_best_submission() -> None:
    crashed = detail(2, miner_hotkey="miner1"), Outcome(Status.CRASHED, None)
    told = ranking().why_miner("miner1", [crashed, (detail(1, miner_hotkey="miner1"), PASSED)])
    assert told.startswith("Not ranked: of submission 1, the kernel passed, but ")


def test_undecided_verdicts_are_told() -> None:
    told = ranking().why_submission(detail(1), None)
    assert told == "Not ranked: it counts once validators with more than half of the stake have judged it."


@pytest.mark.parametrize(
    ("changes", "outcome", "steps"),
    [
        ({"state": "committed", "reveal_block": 1043}, None, "done block 800|now in 43 blocks|open |open "),
        ({"state": "committed", "reveal_block": 1001}, None, "done block 800|now in 1 block|open |open "),
        ({"state": "committed"}, None, "done block 800|now due|open |open "),
        ({"state": "expired"}, None, "done block 800|bad expired|open |open "),
        ({"state": "queued"}, None, "done block 800|done revealed|now queued|open "),
        (
            {"state": "evaluating", "commit_block": None},
            None,
            "skipped none|done sent directly|now evaluating|open ",
        ),
        ({}, None, "done block 800|done revealed|now undecided|open "),
        ({}, Outcome(Status.CRASHED, None), "done block 800|done revealed|bad crashed|bad unranked"),
        ({}, Outcome(Status.PASSED, 1234.5), "done block 800|done revealed|done 1,234|open unranked"),
        ({"rank": 3}, Outcome(Status.PASSED, 12.34), "done block 800|done revealed|done 12.3|done place 3"),
    ],
)
def test_path(changes: dict[str, Any], outcome: Outcome | None, steps: str) -> None:
    path = path_of(detail(1, **changes), outcome, HEIGHT)
    assert [step.name for step in path] == ["Commit", "Reveal", "Verdict", "Rank"]
    assert "|".join(f"{step.state} {step.text}" for step in path) == steps


def places(*speeds: float) -> Sequence[Place]:
    """A ranking of speeds at a million tokens."""
    return measured([entry(number, speed) for number, speed in enumerate(speeds, start=1)])


def test_nothing_ranked_is_no_plot() -> None:
    assert plot.draw([]) is None


@pytest.mark.parametrize(
    "speeds", [(5.0,), (1e-3, 1e9), (1e307, 1e-300), (431e6, 430e6, 400e6, 399e6, 398e6, 12e6)]
)
def test_everything_lies_inside_the_plot_and_faster_is_higher(speeds: tuple[float, ...]) -> None:
    drawn = plot.draw(places(*speeds))
    assert drawn is not None
    for point in drawn.points:
        assert plot.LEFT <= point.x <= plot.WIDTH - plot.RIGHT
        assert plot.TOP <= point.y <= plot.HEIGHT - plot.BOTTOM
    heights = [point.y for point in drawn.points]
    assert heights == sorted(heights, reverse=True)
    assert drawn.points[-1].place.place == 1
    assert 1 <= len(drawn.y_ticks) <= plot.MAX_TICKS
    assert all(plot.TOP <= tick.at <= plot.HEIGHT - plot.BOTTOM for tick in drawn.y_ticks)


def test_labels_of_paid_places_do_not_overlap() -> None:
    drawn = plot.draw(places(100.0, 99.9, 99.8, 99.7, 99.6))
    assert drawn is not None
    heights = sorted(point.label_y for point in drawn.points if point.label_y is not None)
    assert len(heights) == 4
    assert all(b - a >= plot.LABEL_HEIGHT for a, b in pairwise(heights))


def test_line_of_the_first_place_has_a_step_for_every_league() -> None:
    drawn = plot.draw(places(100.0))
    assert drawn is not None
    assert drawn.to_lead.count("V") == 9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_720, "1 h 2 min"),
        (172_800, "2 d 0 h"),
        (99_999, "1 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert texts.duration(seconds) == text


@pytest.mark.parametrize(("fraction", "text"), [(0.6, "60 %"), (0.05, "5 %"), (0.0041, "0.4 %"), (0, "0 %")])
def test_percentages(fraction: float, text: str) -> None:
    assert texts.percent(fraction) == text


def test_figures_of_a_column_share_their_decimals() -> None:
    column = [2463.7, 90.5]
    assert [texts.figure(value, texts.decimals_for(column)) for value in column] == ["2,463.7", "90.5"]
    assert texts.figure(431_200_000.4) == "431,200,000"


def test_short_key_keeps_both_ends() -> None:
    assert texts.short_key("5GgpkwAYm71LP6gsrZo4uimkrF3ENLz4p2eZwTyKHu1cShrs") == "5Ggpkw…Shrs"
    assert texts.short_key("short") == "short"
