"""The ranking as the page explains it: every place, and one sentence for being there or nowhere."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.leagues import league_of
from protocol.messages import SubmissionDetail
from protocol.ranking import Lead, Place
from protocol.rules import MAX_SCORED_PER_ROUND, REWARD_SHARES, TIE_MARGIN
from protocol.types import BlockHeight, Hotkey, SubmissionId
from protocol.verdicts import LogitOutcome, Status
from roles.api.page.path import Outcome
from roles.api.page.texts import figure, percent, plural

VERDICT_REASONS: Final[Mapping[Status, str]] = {
    Status.DUPLICATE: "its kernel files say the same as an earlier submission of another hotkey",
    Status.IMPORTS_FORBIDDEN: "its kernel imports something that the rules forbid",
    Status.IMPORTS_MISSING: "its kernel lacks an import that the rules require",
    Status.FETCH_FAILED: "its repository or commit could not be fetched",
    Status.BUILD_FAILED: "its kernel could not be built",
    Status.CRASHED: "its kernel crashed",
    Status.TIMED_OUT: "its kernel did not finish in time",
    Status.OUT_OF_MEMORY: "its kernel ran out of memory",
    Status.NAN_OR_INF: "its output holds NaN or infinity",
    Status.WRONG_OUTPUT: "its output differs from the float32 reference by more than the rules allow",
    Status.INACCURATE: "its output is less accurate than the yardstick allows, which costs no strike",
    Status.INCONSISTENT: "its output changed between runs on the same input",
    Status.BELOW_CLAIM: "it was measured below 90 % of what its miner claimed",
    Status.IMPLAUSIBLE: "it was measured faster than the device can be",
    Status.TAMPERED: "it interfered with the measurement",
    Status.INFRASTRUCTURE: "validators failed to judge it for reasons of their own",
}
"""Why a verdict other than `passed` gives no rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Everything that places and reasons are read from, at one height."""

    places: Sequence[Place]
    open_leads: Sequence[Lead] = ()
    waiting: Collection[SubmissionId] = ()
    """Submissions that were measured ahead of others and are behind them until a re-run confirms it."""
    logits: Mapping[Hotkey, LogitOutcome]
    registered: Collection[Hotkey] | None
    """None while the chain is unknown: then everybody counts as registered."""
    netuid: int
    height: BlockHeight

    def place_of_miner(self, hotkey: str) -> Place | None:
        """The hotkey's place."""
        return next((place for place in self.places if place.entry.hotkey == hotkey), None)

    def is_registered(self, hotkey: str) -> bool:
        """False when the metagraph is known and the hotkey is not in it."""
        return self.registered is None or hotkey in self.registered

    def score_to_pass(self, place: Place) -> float:
        """The weighted score above which a new submission takes that place."""
        return place.effective_score * (1 + TIE_MARGIN)

    def why_placed(self, place: Place) -> str:
        """Why a ranked submission is where it is, and what it earns."""
        entry = place.entry
        league = league_of(entry.target_sequence_length)
        told = [
            f"Place {place.place}: {figure(entry.tokens_per_sec)} tokens/s times {league.multiplier:g} "
            f"for the {league.name} league make a weighted score of {figure(place.score)}"
        ]
        if place.effective_score < place.score:
            told.append(f"it counts as {figure(place.effective_score)}, because {_why_less(place)}")
        if entry.submission_id in self.waiting:
            told.append(f"it stays behind until {self._awaited(entry.submission_id)}")
        elif place.place > 1:
            ahead = self.places[place.place - 2]
            needed = self.score_to_pass(ahead)
            told.append(
                f"passing place {ahead.place} takes more than {figure(needed)}, here "
                f"{figure(needed / league.multiplier)} tokens/s"
            )
        told.append(
            f"it earns {percent(place.share)} of the reward"
            if place.share > 0
            else f"only the first {len(REWARD_SHARES)} earn"
        )
        return "; ".join(told) + "."

    def why_submission(self, detail: SubmissionDetail, outcome: Outcome | None) -> str:
        """Why a submission has its rank, or none: one sentence."""
        place = self.place_of_miner(detail.miner_hotkey)
        if place is not None and place.entry.submission_id == detail.submission_id:
            return self.why_placed(place)
        return f"Not ranked: {self._why_not(detail, outcome, place)}."

    def why_miner(self, hotkey: str, submissions: Sequence[tuple[SubmissionDetail, Outcome | None]]) -> str:
        """Why a hotkey has its rank, or none: one sentence. `submissions`: newest first."""
        place = self.place_of_miner(hotkey)
        if place is not None:
            return self.why_placed(place)
        if not submissions:
            return "Not ranked: this hotkey has submitted nothing."
        # What stands in the way of the best it has, or else of the newest.
        passed = (one for one in submissions if one[1] is not None and one[1].status is Status.PASSED)
        detail, outcome = next(passed, submissions[0])
        return f"Not ranked: of submission {detail.submission_id}, {self._why_not(detail, outcome, None)}."

    def _why_not(self, detail: SubmissionDetail, outcome: Outcome | None, place: Place | None) -> str:
        if detail.state != "judged":
            return self._why_not_judged(detail)
        if outcome is None:
            return "it counts once validators with more than half of the stake have judged it"
        if outcome.status is not Status.PASSED:
            return VERDICT_REASONS[outcome.status]
        if not self.is_registered(detail.miner_hotkey):
            return f"the kernel passed, but its hotkey is not registered on subnet {self.netuid}"
        logits = self.logits.get(Hotkey(detail.miner_hotkey), LogitOutcome.PENDING)
        if logits is LogitOutcome.FAILED:
            return "the kernel passed, but the logits of its miner's inference server failed verification"
        if logits is LogitOutcome.PENDING:
            return "the kernel passed, but its miner's inference server has not passed a logit check lately"
        if SubmissionId(detail.submission_id) in self.waiting:
            return f"the kernel passed, but it waits until {self._awaited(detail.submission_id)}"
        if place is not None:
            return (
                f"the kernel passed, but each hotkey has one place, and submission "
                f"{place.entry.submission_id} of the same hotkey holds place {place.place}"
            )
        return (
            f"the kernel passed, but only the first {MAX_SCORED_PER_ROUND} scored submissions of a hotkey "
            "in a round count"
        )

    def _awaited(self, submission_id: int) -> str:
        """What confirms a lead."""
        led = next(
            (lead.earlier for lead in self.open_leads if lead.later.submission_id == submission_id), None
        )
        other = "an earlier submission" if led is None else f"submission {led.submission_id}"
        return f"a re-run of both in turn confirms its lead over {other}"

    def _why_not_judged(self, detail: SubmissionDetail) -> str:
        match detail.state:
            case "queued":
                return "its code is revealed and waits for a validator"
            case "evaluating":
                return "a validator is judging it right now"
            case "expired":
                return f"its commitment was not revealed before block {detail.expires_block:,}"
            case _ if self.height < (detail.reveal_block or 0):
                left = (detail.reveal_block or 0) - self.height
                return (
                    f"its code is not revealed yet and may be from block {detail.reveal_block:,}, "
                    f"in {plural(left, 'block')}"
                )
            case _:
                return f"its code is not revealed yet and must be before block {detail.expires_block:,}"


def _why_less(place: Place) -> str:
    """Why a score counts for less than it is."""
    if place.score > place.effective_score * (1 + TIE_MARGIN):
        return f"a re-run confirmed no lead of more than {percent(TIE_MARGIN)} over an earlier submission"
    return f"it lies within {percent(TIE_MARGIN)} of an earlier submission"
