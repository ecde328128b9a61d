"""The ranking: one total order, no overtaking within the margin, real leads that count."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidMessage
from protocol.leagues import weighted_score
from protocol.ranking import Compared, Entry, Place, Ranking, pooled_throughput, reward_shares
from protocol.ranking import rank as rank_compared
from protocol.types import Hotkey, SubmissionId

START = datetime(2026, 1, 1, tzinfo=UTC)
LENGTH_OF_FACTOR_ONE = 300_000


def entry(number: int, hotkey: str, score: float, at_s: float | None = None, round_number: int = 0) -> Entry:
    """An entry whose weighted score is `score`, at `at_s` seconds (its number when None)."""
    return Entry(
        submission_id=SubmissionId(number),
        hotkey=Hotkey(hotkey),
        target_sequence_length=LENGTH_OF_FACTOR_ONE,
        tokens_per_sec=score,
        code_fixed_at=START + timedelta(seconds=number if at_s is None else at_s),
        round_number=round_number,
    )


def rank(entries: list[Entry], **options: Any) -> Sequence[Place]:
    """The places when re-runs have confirmed every lead."""
    confirmed = [confirm(one.submission_id, 0, earlier_score=math.inf) for one in entries]
    return rank_compared(entries, confirmed, **options).places


def confirm(later: int, earlier: int, *, counts: bool = True, earlier_score: float = 0.0) -> Compared:
    return Compared(
        later=SubmissionId(later), earlier=SubmissionId(earlier), counts=counts, earlier_score=earlier_score
    )


def open_leads(ranking: Ranking) -> list[tuple[int, int]]:
    return [(lead.later.submission_id, lead.earlier.submission_id) for lead in ranking.open_leads]


def order(places: Sequence[Place]) -> list[str]:
    return [place.entry.hotkey for place in places]


# Scores that crowd within a few margins of each other, so that ties chain.
crowded = st.one_of(
    st.floats(95.0, 110.0),
    st.sampled_from([0.0, -1.0, math.nan, math.inf, 100.0, 102.0, 104.04, 98.04, 1e-300, 1e300]),
)


@st.composite
def fields(draw: st.DrawFn, hotkeys: int = 6) -> list[Entry]:
    """Entries with distinct ids; equal times and hotkeys happen."""
    count = draw(st.integers(0, 14))
    ids = draw(st.permutations(range(1, count + 1)))
    return [
        entry(
            number,
            f"hotkey{draw(st.integers(0, hotkeys - 1))}",
            draw(crowded),
            at_s=draw(st.integers(0, 8)),
            round_number=draw(st.integers(0, 1)),
        )
        for number in ids
    ]


def test_higher_scores_first() -> None:
    places = rank([entry(1, "a", 100.0), entry(2, "b", 300.0), entry(3, "c", 200.0)])
    assert order(places) == ["b", "c", "a"]
    assert [place.place for place in places] == [1, 2, 3]
    assert [place.share for place in places] == [0.60, 0.25, 0.10]


def test_the_score_is_weighted_by_the_league() -> None:
    short = replace(entry(1, "short", 100_000.0), target_sequence_length=100_000)
    long = replace(entry(2, "long", 50_000.0), target_sequence_length=1_000_000)
    places = rank([short, long])
    assert [(place.entry.hotkey, place.score) for place in places] == [
        ("long", 150_000.0),
        ("short", 50_000.0),
    ]


@pytest.mark.parametrize("score", [0.0, -3.0, math.nan, math.inf, -math.inf])
def test_what_is_no_score_is_not_ranked(score: float) -> None:
    assert order(rank([entry(1, "a", score), entry(2, "b", 1.0)])) == ["b"]


def test_the_first_wins_a_tie_and_then_the_smaller_id() -> None:
    assert order(rank([entry(2, "late", 100.0, at_s=9), entry(1, "early", 100.0, at_s=8)])) == [
        "early",
        "late",
    ]
    assert order(rank([entry(8, "eight", 100.0, at_s=5), entry(7, "seven", 100.0, at_s=5)])) == [
        "seven",
        "eight",
    ]


def test_a_copy_within_the_margin_stays_behind_and_a_real_lead_passes() -> None:
    assert order(rank([entry(1, "original", 100.0), entry(2, "copy", 102.0)])) == ["original", "copy"]
    assert order(rank([entry(1, "original", 100.0), entry(2, "better", 102.01)])) == ["better", "original"]


def test_the_margin_does_not_add_up_along_a_chain_of_copies() -> None:
    chain = [entry(number, f"copy{number}", 100.0 + 1.9 * number) for number in range(1, 4)]
    places = rank([entry(0, "original", 100.0), *chain])
    assert [(place.entry.hotkey, place.effective_score) for place in places] == [
        ("copy2", 103.8),
        ("copy3", 103.8),
        ("original", 100.0),
        ("copy1", 100.0),
    ]


def test_a_copy_between_two_earlier_ones_takes_the_lower_score() -> None:
    places = rank([entry(1, "fast", 101.0), entry(2, "original", 100.0), entry(3, "copy", 101.5)])
    assert order(places) == ["fast", "original", "copy"]


def test_without_a_margin_the_letter_of_the_seed_holds() -> None:
    assert order(rank([entry(1, "a", 100.0), entry(2, "b", 100.0 + 1e-9)], tie_margin=0.0)) == ["b", "a"]
    assert order(rank([entry(1, "a", 100.0), entry(2, "b", 100.0)], tie_margin=0.0)) == ["a", "b"]


def test_one_place_for_each_hotkey() -> None:
    places = rank([entry(1, "a", 100.0), entry(2, "a", 200.0), entry(3, "b", 150.0)])
    assert [(place.entry.hotkey, place.entry.submission_id) for place in places] == [("a", 2), ("b", 3)]


def test_only_the_first_submissions_of_a_round_count() -> None:
    tries = [entry(number, "roller", 100.0 + number) for number in range(1, 5)]
    fifth = entry(5, "roller", 500.0)
    assert rank([*tries, fifth])[0].score == 104.0
    assert rank([*tries, replace(fifth, round_number=1)])[0].score == 500.0
    unscored = [replace(one, tokens_per_sec=0.0) for one in tries]
    assert rank([*unscored, fifth])[0].score == 500.0
    assert rank([*tries, fifth], max_scored_per_round=0) == []


def test_rewards_go_to_the_first_four() -> None:
    places = rank([entry(number, f"h{number}", 1000.0 * number) for number in range(1, 7)])
    assert reward_shares(places) == {"h6": 0.60, "h5": 0.25, "h4": 0.10, "h3": 0.05}
    assert reward_shares(places[:2]) == {"h6": 0.60, "h5": 0.25}
    assert reward_shares([]) == {}


def test_times_without_a_zone_are_utc_and_other_zones_are_the_same_instant() -> None:
    utc = entry(2, "utc", 100.0, at_s=10)
    naive = replace(entry(1, "naive", 100.0), code_fixed_at=datetime(2026, 1, 1, 0, 0, 9))  # noqa: DTZ001
    east = replace(
        entry(3, "east", 100.0),
        code_fixed_at=datetime(2026, 1, 1, 1, 0, 8, tzinfo=timezone(timedelta(hours=1))),
    )
    assert order(rank([utc, naive, east])) == ["east", "naive", "utc"]


def test_the_same_entry_twice_counts_once_and_a_contradiction_is_refused() -> None:
    one = entry(1, "a", 100.0)
    assert len(rank([one, one])) == 1
    with pytest.raises(InvalidMessage, match="submission_id 1"):
        rank([one, replace(one, tokens_per_sec=101.0)])


@pytest.mark.parametrize("margin", [-0.01, math.nan, math.inf])
def test_a_margin_must_be_a_number(margin: float) -> None:
    with pytest.raises(InvalidMessage, match="tie_margin"):
        rank([], tie_margin=margin)


def test_measurements_are_pooled_by_the_median_of_all_trials() -> None:
    assert pooled_throughput([[1.0, 2.0], [100.0]]) == 2.0
    assert math.isnan(pooled_throughput([[1.0, math.nan, 2.0]]))
    with pytest.raises(InvalidMessage, match="trials"):
        pooled_throughput([[], []])


# --- leads ---


def test_a_lead_counts_once_a_rerun_has_confirmed_it() -> None:
    entries = [entry(1, "a", 100.0), entry(2, "b", 110.0)]
    before = rank_compared(entries, [])
    assert order(before.places) == ["a", "b"]
    assert open_leads(before) == [(2, 1)]
    assert before.waiting == {2}
    after = rank_compared(entries, [confirm(2, 1)])
    assert order(after.places) == ["b", "a"]
    assert after.open_leads == ()
    assert after.waiting == frozenset()


def test_a_lead_that_is_not_confirmed_is_a_tie() -> None:
    entries = [entry(1, "a", 100.0), entry(2, "b", 110.0), entry(3, "c", 111.0)]
    ranking = rank_compared(entries, [confirm(2, 1, counts=False), confirm(3, 1)])
    assert order(ranking.places) == ["c", "a", "b"]
    assert [place.effective_score for place in ranking.places] == [111.0, 100.0, 100.0]
    assert ranking.open_leads == ()


def test_after_a_tie_the_lead_over_the_next_one_is_at_stake() -> None:
    entries = [entry(1, "z", 90.0), entry(2, "a", 100.0), entry(3, "b", 110.0)]
    first = rank_compared(entries, [confirm(2, 1)])
    assert open_leads(first) == [(3, 2)]
    tie = [confirm(2, 1), confirm(3, 2, counts=False)]
    second = rank_compared(entries, tie)
    assert order(second.places) == ["a", "z", "b"]
    assert open_leads(second) == [(3, 1)]
    assert order(rank_compared(entries, [*tie, confirm(3, 1)]).places) == ["a", "b", "z"]
    assert order(rank_compared(entries, [*tie, confirm(3, 1, counts=False)]).places) == ["a", "z", "b"]


def test_a_lead_over_the_best_is_one_over_all_of_them_also_when_it_has_left() -> None:
    entries = [entry(1, "z", 90.0), entry(2, "a", 100.0), entry(3, "b", 110.0)]
    best = confirm(3, 2, earlier_score=100.0)
    assert order(rank_compared(entries, [best, confirm(2, 1)]).places) == ["b", "a", "z"]
    left = [one for one in entries if one.hotkey != "a"]
    assert order(rank_compared(left, [best]).places) == ["b", "z"]
    assert rank_compared(left, [best]).open_leads == ()


def test_an_older_submission_keeps_the_place_while_a_newer_one_of_its_hotkey_waits() -> None:
    entries = [entry(1, "a", 100.0), entry(2, "b", 90.0), entry(3, "a", 120.0)]
    places = rank_compared(entries, []).places
    assert [(place.entry.submission_id, place.effective_score) for place in places] == [(1, 100.0), (2, 90.0)]
    assert rank_compared(entries, [confirm(3, 1)]).places[0].entry.submission_id == 3


def test_places_that_earn_nothing_need_no_rerun() -> None:
    paid = [entry(number, f"paid{number}", 1000.0 - number) for number in range(1, 5)]
    ranking = rank_compared([*paid, entry(5, "slow", 10.0), entry(6, "faster", 20.0)], [])
    assert order(ranking.places)[4:] == ["faster", "slow"]
    assert ranking.open_leads == ()


def test_the_earlier_of_two_that_tie_gets_its_own_rerun() -> None:
    # 3 and 4 tie, and only the later one's lead over 1 has been run again.
    entries = [entry(1, "a", 100.0), entry(3, "b", 104.04), entry(4, "a", 104.8)]
    first = rank_compared(entries, [confirm(4, 1)])
    assert [place.entry.submission_id for place in first.places] == [4, 3]
    assert first.waiting == {3}
    assert open_leads(first) == [(3, 1)]
    second = rank_compared(entries, [confirm(4, 1), confirm(3, 1)])
    assert [place.entry.submission_id for place in second.places] == [3, 4]
    third = rank_compared(entries, [confirm(4, 1), confirm(3, 1, counts=False)])
    assert [place.entry.submission_id for place in third.places] == [4, 3]
    assert not second.open_leads
    assert not third.open_leads


def test_a_lead_by_chance_holds_nobody_else_up() -> None:
    # The second was measured far too fast; the third, which is as fast as that, leads the first in truth.
    entries = [entry(1, "a", 100.0), entry(2, "chance", 130.0), entry(3, "c", 131.0)]
    results = [confirm(2, 1, counts=False)]
    assert open_leads(rank_compared(entries, results)) == [(3, 1)]
    assert order(rank_compared(entries, [*results, confirm(3, 1)]).places) == ["c", "a", "chance"]


@given(fields(), st.randoms(use_true_random=False))
def test_few_reruns_settle_all_places_that_earn(entries: list[Entry], chance: random.Random) -> None:
    speeds = {one.submission_id: chance.uniform(90.0, 110.0) for one in entries}
    results: list[Compared] = []
    while leads := rank_compared(entries, results).open_leads:
        later, earlier = leads[0].later.submission_id, leads[0].earlier.submission_id
        assert (leads[0].earlier.code_fixed_at, earlier) < (leads[0].later.code_fixed_at, later)
        assert not any((one.later, one.earlier) == (later, earlier) for one in results)
        results.append(confirm(later, earlier, counts=speeds[later] > 1.02 * speeds[earlier]))
    assert len(results) <= len(entries) * 4
    chance.shuffle(results)
    ranking = rank_compared(entries, results)
    assert not ranking.waiting
    keys = [(-p.effective_score, p.entry.code_fixed_at, p.entry.submission_id) for p in ranking.places]
    assert keys == sorted(keys)


@given(fields())
def test_one_rerun_for_each_reward_settles_a_new_list_of_true_measurements(entries: list[Entry]) -> None:
    results: list[Compared] = []
    while leads := rank_compared(entries, results).open_leads:
        results.append(confirm(leads[0].later.submission_id, leads[0].earlier.submission_id))
    assert len(results) <= 4
    assert rank_compared(entries, results).places == rank(entries)


# --- properties ---


@given(fields(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(entries: list[Entry], chance: random.Random) -> None:
    shuffled = list(entries)
    chance.shuffle(shuffled)
    assert rank(shuffled) == rank(entries)


@given(fields())
def test_it_is_a_strict_total_order_over_hotkeys(entries: list[Entry]) -> None:
    places = rank(entries)
    scored = {one.hotkey for one in entries if math.isfinite(one.tokens_per_sec) and one.tokens_per_sec > 0}
    assert {place.entry.hotkey for place in places} == scored
    assert len(places) == len(scored)
    assert [place.place for place in places] == list(range(1, len(places) + 1))
    keys = [(-p.effective_score, p.entry.code_fixed_at, p.entry.submission_id) for p in places]
    assert all(before < after for before, after in itertools.pairwise(keys))


@given(fields())
def test_an_effective_score_is_within_the_margin_below_the_score(entries: list[Entry]) -> None:
    for place in rank(entries, tie_margin=0.02):
        assert place.effective_score <= place.score
        assert place.score <= place.effective_score * 1.02
        assert place.score == weighted_score(place.entry.tokens_per_sec, place.entry.target_sequence_length)


@given(fields(hotkeys=1), st.sampled_from([0.0, 0.005, 0.02, 0.1]))
def test_passing_an_earlier_one_takes_more_than_the_margin_and_no_more(
    entries: list[Entry], margin: float
) -> None:
    # Each entry has a hotkey of its own, so that every one has a place.
    own = [replace(one, hotkey=Hotkey(f"h{one.submission_id}")) for one in entries]
    for one, other in itertools.permutations(rank(own, tie_margin=margin), 2):
        earlier = (one.entry.code_fixed_at, one.entry.submission_id) < (
            other.entry.code_fixed_at,
            other.entry.submission_id,
        )
        if earlier:
            assert (other.place < one.place) is (other.score > one.effective_score * (1 + margin))


@given(fields(), st.integers(0, 13), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4))
def test_rerolled_copies_never_pass_their_original(
    entries: list[Entry], pick: int, rolls: list[float]
) -> None:
    places = rank(entries)
    if not places:
        return
    original = places[pick % len(places)]
    copies = [
        entry(
            1000 + number,
            f"copier{number}",
            original.effective_score * (1 + 0.0199 * roll),
            at_s=100 + number,
        )
        for number, roll in enumerate(rolls)
    ]
    after = {place.entry.hotkey: place.place for place in rank([*entries, *copies])}
    assert after[original.entry.hotkey] == original.place
    assert all(after[copy.hotkey] > original.place for copy in copies)


@given(fields())
def test_a_late_comer_changes_no_order_among_the_others(entries: list[Entry]) -> None:
    before = order(rank(entries))
    late = entry(1000, "late", 101.0, at_s=1000)
    assert [hotkey for hotkey in order(rank([*entries, late])) if hotkey != "late"] == before


@given(fields())
def test_a_real_lead_over_everybody_wins(entries: list[Entry]) -> None:
    scores = [one.tokens_per_sec for one in entries if math.isfinite(one.tokens_per_sec)]
    winner = entry(1000, "winner", max([1.0, *scores]) * 1.0201, at_s=1000)
    assert rank([*entries, winner])[0].entry.hotkey == "winner"


@given(fields())
def test_shares_belong_to_four_and_never_exceed_the_whole(entries: list[Entry]) -> None:
    shares = reward_shares(rank(entries))
    assert len(shares) <= 4
    assert sum(shares.values()) <= 1.0 + 1e-12
    assert list(shares.values()) == [0.60, 0.25, 0.10, 0.05][: len(shares)]
