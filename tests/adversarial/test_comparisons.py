"""Two submissions timed in turn through the real sandbox, and what a hostile one makes of it."""

import pytest

from protocol.leagues import weighted_score
from protocol.rules import TIE_MARGIN
from protocol.verdicts import LeadOutcome
from tests.adversarial.conftest import Compare

SLOWED = """
_plain_chunk_quasar = chunk_quasar

def chunk_quasar(*args, **kwargs):
    for _ in range(2):
        _plain_chunk_quasar(*args, **kwargs)
    return _plain_chunk_quasar(*args, **kwargs)
"""
WRONG = "def chunk_quasar(q, k, v, beta, **kwargs):\n    return v, None\n"
HANGS = "def chunk_quasar(q, k, v, beta, **kwargs):\n    import time\n    time.sleep(3600)\n"
DIES_LATER = """
_plain_chunk_quasar = chunk_quasar
_calls = []

def chunk_quasar(*args, **kwargs):
    _calls.append(None)
    if len(_calls) > 7:
        import os
        os._exit(1)
    return _plain_chunk_quasar(*args, **kwargs)
"""
BUSY = """
_plain_chunk_quasar = chunk_quasar
_started = []

def _burn():
    while True:
        sum(range(10_000))

def chunk_quasar(*args, **kwargs):
    import os
    if not _started:
        # So many that no processor is left to it alone.
        for _ in range(2 * len(os.sched_getaffinity(0))):
            if os.fork() == 0:
                _burn()
        _started.append(None)
    return _plain_chunk_quasar(*args, **kwargs)
"""


def test_a_real_lead_is_confirmed_on_the_same_inputs(compare_submissions: Compare) -> None:
    figures = compare_submissions(SLOWED, "")
    assert figures.outcome is LeadOutcome.CONFIRMED, figures.evidence
    assert figures.later_tokens_per_sec is not None
    assert figures.earlier_tokens_per_sec is not None
    assert figures.ratio == figures.later_tokens_per_sec / figures.earlier_tokens_per_sec
    earlier, later = figures.evidence["earlier"], figures.evidence["later"]
    assert earlier["lengths"] == later["lengths"]
    assert earlier["seeds"][0] == later["seeds"][0]
    assert len(earlier["trial_s"]) == len(later["trial_s"]) == 2
    assert figures.later_spread is not None


def test_a_slower_one_does_not_lead_by_its_weighted_score(compare_submissions: Compare) -> None:
    figures = compare_submissions("", SLOWED, targets=(200_000, 100_000), lengths=(192, 128))
    assert figures.outcome is LeadOutcome.NOT_CONFIRMED, figures.evidence
    assert figures.later_tokens_per_sec is not None
    assert figures.earlier_tokens_per_sec is not None
    later = weighted_score(figures.later_tokens_per_sec, 100_000)
    assert figures.ratio == later / weighted_score(figures.earlier_tokens_per_sec, 200_000)
    assert figures.ratio < 1.0 + TIE_MARGIN
    earlier, later = (figures.evidence[side]["lengths"] for side in ("earlier", "later"))
    assert [length - 64 for length in earlier] == later


@pytest.mark.parametrize("suffix", [DIES_LATER, None], ids=["dies in the trials", "gone"])
def test_an_earlier_one_that_fails_is_named(suffix: str | None, compare_submissions: Compare) -> None:
    figures = compare_submissions(suffix, "")
    assert figures.outcome is LeadOutcome.EARLIER_FAILED, figures.evidence
    assert figures.evidence["reason"].startswith("the earlier submission: ")


@pytest.mark.parametrize("suffix", [WRONG, None], ids=["wrong", "gone"])
def test_a_later_one_that_fails_is_named(suffix: str | None, compare_submissions: Compare) -> None:
    figures = compare_submissions("", suffix)
    assert figures.outcome is LeadOutcome.LATER_FAILED, figures.evidence
    assert figures.evidence["reason"].startswith("the later submission: ")


def test_nobody_is_blamed_when_neither_can_be_had(compare_submissions: Compare) -> None:
    assert compare_submissions(None, None).outcome is LeadOutcome.INFRASTRUCTURE


def test_one_that_hangs_uses_up_its_own_time_alone(compare_submissions: Compare) -> None:
    figures = compare_submissions("", HANGS, deadlines_s=(120.0, 40.0))
    assert figures.outcome is LeadOutcome.LATER_FAILED, figures.evidence
    assert "timed_out" in figures.evidence["reason"]


def test_children_that_burn_the_processor_are_stopped_in_the_others_turn(
    compare_submissions: Compare,
) -> None:
    figures = compare_submissions("", BUSY)
    # They slow down the one that started them, and nobody else.
    assert figures.outcome is LeadOutcome.NOT_CONFIRMED, figures.evidence
