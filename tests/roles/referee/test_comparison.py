"""Whom a comparison blames, and how much it hands over, without workers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernels.harness.session import CandidateFailed
from protocol.messages import ComparisonJob, EvaluationJob, GitSource
from protocol.types import CommitHash
from protocol.verdicts import LeadOutcome, Status
from roles.referee.comparison import _expect_free, _Match, compare
from roles.referee.kept_files import KeptFiles
from roles.referee.side import Side, SideLost
from roles.referee.stages import Ended, Record
from tests.roles.referee.jobs import job_in


def side(name: str, folder: Path, *, length: int = 100, calls: int = 1) -> Side:
    """One of two, as far as it is known before its worker starts."""
    made = Side(name, job_in(folder, target_sequence_length=length, sequence_length=length))
    made.measuring = SimpleNamespace(calls=calls)  # type: ignore[assignment]
    return made


def match(earlier: Side, later: Side) -> _Match:
    turn: Any = SimpleNamespace(give_way=lambda: None)
    return _Match(earlier, later, turn, Record(), lambda _stage: None)


def yardstick(after_earlier: float, after_later: float, otherwise: Ended | None = None) -> Any:
    """A yardstick that was slower by so much after the turns of each."""

    def check_after() -> None:
        if otherwise is not None:
            raise otherwise

    return SimpleNamespace(
        beside=[after_earlier, after_later] * 3,
        slowing_in=lambda per_token: sum(per_token) / len(per_token),
        check_after=check_after,
        sets=5,
    )


@pytest.mark.parametrize(
    ("slowings", "blamed"), [((0.3, 0.0), "earlier"), ((0.02, 0.2), "later"), ((0.0, 0.05), None)]
)
def test_the_gpu_was_busy_after_the_turns_of_one(
    slowings: tuple[float, float], blamed: str | None, tmp_path: Path
) -> None:
    both = match(side("earlier", tmp_path), side("later", tmp_path))
    if blamed is None:
        both._check_quiet(yardstick(*slowings))
        return
    with pytest.raises(SideLost, match=f"the {blamed} submission: tampered: the GPU was busy") as caught:
        both._check_quiet(yardstick(*slowings))
    assert caught.value.side.name == blamed


def test_nobody_is_blamed_when_it_was_busy_after_both(tmp_path: Path) -> None:
    both = match(side("earlier", tmp_path), side("later", tmp_path))
    tampered = Ended(Status.TAMPERED, "the GPU was busy")
    with pytest.raises(Ended) as caught:
        both._check_quiet(yardstick(0.4, 0.4, tampered))
    assert caught.value.status is Status.INFRASTRUCTURE


def test_as_many_sets_as_any_needs_at_a_length_and_no_more_at_another(tmp_path: Path) -> None:
    same = match(side("earlier", tmp_path, calls=2), side("later", tmp_path, calls=9))
    assert same._sets(None) == {100: 9}
    apart = match(side("earlier", tmp_path, calls=30), side("later", tmp_path, length=1000, calls=3))
    assert apart._sets(yardstick(0.0, 0.0)) == {100: 30, 1000: 3}


@pytest.mark.parametrize(
    ("busy_until", "suspects", "blamed"),
    [
        ({"earlier"}, ("earlier", "later"), "earlier"),
        ({"later"}, ("earlier", "later"), "later"),
        ({"earlier", "later"}, ("later", "earlier"), "earlier"),
    ],
)
def test_a_busy_gpu_is_free_once_the_one_to_blame_is_gone(
    busy_until: set[str], suspects: tuple[str, ...], blamed: str, tmp_path: Path
) -> None:
    sides, ended = [side(name, tmp_path) for name in suspects], set[str]()
    for each in sides:
        each.at_end(lambda one: ended.add(one.name))
    disturbed: Any = SimpleNamespace(
        is_disturbed=lambda: not busy_until <= ended, wait_for_clearing=lambda: None
    )
    with pytest.raises(SideLost, match=f"the {blamed} submission: tampered: the GPU was busy"):
        _expect_free(disturbed, sides)


def test_a_gpu_that_stays_busy_without_them_is_nobodys_fault(tmp_path: Path) -> None:
    disturbed: Any = SimpleNamespace(is_disturbed=lambda: True, wait_for_clearing=lambda: None)
    with pytest.raises(Ended) as caught:
        _expect_free(disturbed, [side("earlier", tmp_path), side("later", tmp_path)])
    assert caught.value.status is Status.INFRASTRUCTURE


def test_failures_are_ones_own_unless_the_referee_says_otherwise(tmp_path: Path) -> None:
    one = side("later", tmp_path)
    one.worker = SimpleNamespace(explained=lambda failure: failure)  # type: ignore[assignment]
    with pytest.raises(SideLost, match="the later submission: crashed: gone"), one.answering():
        raise CandidateFailed("crash", "gone")
    with pytest.raises(SideLost, match="the later submission: wrong_output"), one.answering():
        raise Ended(Status.WRONG_OUTPUT, "wrong")
    with pytest.raises(Ended), one.answering():
        raise Ended(Status.INFRASTRUCTURE, "no memory left for the referee")
    sacrificed = Ended(Status.INFRASTRUCTURE, "the host ran out of memory")
    one.worker = SimpleNamespace(explained=lambda _failure: sacrificed)  # type: ignore[assignment]
    with pytest.raises(Ended, match="the host ran out"), one.answering():
        raise CandidateFailed("crash", "gone")


KEPT, ASKED_FOR = CommitHash("a" * 40), CommitHash("b" * 40)


@pytest.mark.parametrize(
    ("url", "later", "outcome"),
    [
        ("https://no-such-host.invalid/a/b", ASKED_FOR, LeadOutcome.INFRASTRUCTURE),
        ("https://no-such-host.invalid/a/b", KEPT, LeadOutcome.INFRASTRUCTURE),
        ("file:///nowhere.git", ASKED_FOR, LeadOutcome.LATER_FAILED),
        ("file:///nowhere.git", KEPT, LeadOutcome.EARLIER_FAILED),
    ],
)
def test_a_host_that_is_away_is_nobodys_failure_though_one_was_kept(
    url: str, later: CommitHash, outcome: LeadOutcome, tmp_path: Path
) -> None:
    KeptFiles(tmp_path / "sources").keep(KEPT, {"chunk.py": b"x = 1\n"})

    def of(commit_hash: CommitHash) -> EvaluationJob:
        source = GitSource(
            fork_url=url, commit_hash=commit_hash, allowed_hosts=("no-such-host.invalid",), allow_file=True
        )
        return side("either", tmp_path).job.model_copy(update={"source": source})

    earlier = KEPT if later == ASKED_FOR else ASKED_FOR
    report = compare(ComparisonJob(earlier=of(earlier), later=of(later)), lambda _stage: None)
    assert report.figures.outcome is outcome
