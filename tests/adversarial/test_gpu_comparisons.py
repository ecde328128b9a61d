"""Two submissions timed in turn on a GPU: what each could do to the other, through the real sandbox."""

import pytest
import torch

from protocol.rules import TIE_MARGIN
from protocol.verdicts import LeadOutcome
from tests.adversarial.conftest import Compare
from tests.adversarial.test_attacks import wrapped
from tests.adversarial.test_gpu_attacks import LENGTH, busy, crowded, holding

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SLOWED = wrapped("torch.cuda._sleep(2_000_000)")
HOG = holding(26)
# Our kernel and what CUDA itself takes are six more.
NEARLY_A_HOG = holding(18)


@pytest.mark.parametrize("length", [LENGTH, 1_000_000])
def test_the_same_kernel_twice_is_a_tie(length: int, compare_submissions: Compare) -> None:
    figures = compare_submissions("", "", profile="gpu", lengths=(length, length), trials=10)
    assert figures.outcome is LeadOutcome.NOT_CONFIRMED, figures.evidence
    assert figures.ratio is not None
    assert 1.0 - TIE_MARGIN < figures.ratio < 1.0 + TIE_MARGIN


def test_a_real_lead_is_confirmed(compare_submissions: Compare) -> None:
    figures = compare_submissions(SLOWED, "", profile="gpu", lengths=(LENGTH, LENGTH), trials=6)
    assert figures.outcome is LeadOutcome.CONFIRMED, figures.evidence
    assert len(figures.evidence["yardstick"]["beside_ns_per_token"]) == 6


def test_two_leagues_are_run_each_at_its_own_length(compare_submissions: Compare) -> None:
    figures = compare_submissions(
        "", "", profile="gpu", targets=(LENGTH, 1_000_000), lengths=(LENGTH, 1_000_000), trials=6
    )
    assert figures.outcome is LeadOutcome.CONFIRMED, figures.evidence
    assert min(figures.evidence["later"]["lengths"]) >= 1_000_000


def test_one_that_leaves_the_gpu_busy_gains_nothing(compare_submissions: Compare) -> None:
    figures = compare_submissions(
        "", busy(16384), profile="gpu", lengths=(LENGTH, LENGTH), trials=6, deadlines_s=(200.0, 200.0)
    )
    assert figures.outcome is LeadOutcome.LATER_FAILED, figures.evidence
    assert "busy after its turn" in figures.evidence["reason"]
    figures = compare_submissions(
        busy(16384), "", profile="gpu", lengths=(LENGTH, LENGTH), trials=6, deadlines_s=(200.0, 200.0)
    )
    assert figures.outcome is LeadOutcome.EARLIER_FAILED, figures.evidence
    assert "busy after its turn" in figures.evidence["reason"]


def test_two_that_hold_nearly_their_share_get_their_figures(compare_submissions: Compare) -> None:
    """At a million tokens, where the referee itself needs most."""
    figures = compare_submissions(
        NEARLY_A_HOG, NEARLY_A_HOG, profile="gpu", lengths=(1_000_000, 1_000_000), trials=4
    )
    assert figures.outcome is LeadOutcome.NOT_CONFIRMED, figures.evidence


def test_neither_loses_for_memory_that_others_hold(compare_submissions: Compare) -> None:
    with crowded(74):
        figures = compare_submissions(
            NEARLY_A_HOG, NEARLY_A_HOG, profile="gpu", lengths=(LENGTH, LENGTH), trials=6
        )
    assert figures.outcome is LeadOutcome.INFRASTRUCTURE, figures.evidence
    assert "MiB for the submission, which may hold" in figures.evidence["reason"]


def test_one_that_takes_the_memory_loses_and_not_the_other(compare_submissions: Compare) -> None:
    figures = compare_submissions("", HOG, profile="gpu", lengths=(LENGTH, LENGTH), trials=6)
    assert figures.outcome is LeadOutcome.LATER_FAILED, figures.evidence
    assert "out_of_memory" in figures.evidence["reason"]
    figures = compare_submissions(HOG, "", profile="gpu", lengths=(LENGTH, LENGTH), trials=6)
    assert figures.outcome is LeadOutcome.EARLIER_FAILED, figures.evidence
