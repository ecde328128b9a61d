"""This validator's own verdicts and logit checks: what it ranks by, and what the API has yet to hear of."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from statistics import median
from typing import Any, Final, Self

from node.journal import Journal, Record
from protocol.errors import ConfigError
from protocol.leagues import weighted_score
from protocol.messages import Figures, LeaseAnswer, LogitCheck, Verdict
from protocol.ranking import Entry, pooled_throughput
from protocol.rules import LOGIT_PASS_SECONDS
from protocol.types import CommitHash, Hotkey, SubmissionId
from protocol.verdicts import LogitOutcome, Status
from roles.status import SHOWN

VERDICT: Final = "verdict"
WHOLE: Final = "verdict"
"""Names the signed verdict with its evidence in a record, until the API has it."""
MEASURED: Final = "measured"
"""Names what the ranking needs of it."""
FIGURES: Final = "figures"
"""Names what an earlier build kept instead, for ever."""
LOGIT_CHECK: Final = "logit_check"
RECORDED: Final = "recorded"
"""On disk here; the API may or may not have it."""
ACKNOWLEDGED: Final = "acknowledged"
REFUSED: Final = "refused"
"""The API does not want it (a lease that was given again); it counts for the own ranking all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One verdict as the ranking sees it."""

    submission_id: SubmissionId
    hotkey: Hotkey
    fork_url: str
    commit_hash: CommitHash
    target_sequence_length: int
    code_fixed_at: datetime
    round_number: int
    fingerprint: str | None
    status: Status
    measured_tokens_per_sec: float | None
    trials: tuple[float, ...]
    """Throughput of each timed trial; none unless it passed."""

    @property
    def code(self) -> tuple[Hotkey, CommitHash, int]:
        """What was submitted, whatever its number: whose, what, and for which length."""
        return self.hotkey, self.commit_hash, self.target_sequence_length

    @classmethod
    def read(cls, record: Record) -> Self:
        """The judgement of a journal record."""
        data = record.data
        measured = _measured_of(data)
        return cls(
            submission_id=SubmissionId(data["submission_id"]),
            hotkey=Hotkey(data["hotkey"]),
            fork_url=data["fork_url"],
            commit_hash=CommitHash(data["commit_hash"]),
            target_sequence_length=data["target_sequence_length"],
            code_fixed_at=datetime.fromisoformat(data["code_fixed_at"]),
            round_number=data["round_number"],
            fingerprint=data["fingerprint"],
            status=Status(measured["status"]),
            measured_tokens_per_sec=measured["tokens_per_sec"],
            trials=tuple(measured["trials"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitStanding:
    """Where a miner's logit verification stands."""

    outcome: LogitOutcome
    """Of the last check."""
    checked_at: datetime
    passed_at: datetime | None
    pending_since: datetime | None
    """When the tries that have not reached it began; None unless the last one was pending."""

    def outcome_at(self, now: datetime) -> LogitOutcome:
        """What counts: a pass lasts a day, unless a check fails meanwhile."""
        if self.outcome is LogitOutcome.FAILED:
            return LogitOutcome.FAILED
        # A date that is to come is of a clock that was wrong.
        if self.passed_at is not None and abs(now - self.passed_at) < timedelta(seconds=LOGIT_PASS_SECONDS):
            return LogitOutcome.PASSED
        return LogitOutcome.PENDING


class VerdictStore:
    """Verdicts and logit checks in the journal, with what the ranking needs of them in memory.

    Once the API has a verdict with its evidence, the journal keeps what the ranking needs, too, and no more.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._judgements: dict[SubmissionId, list[Judgement]] = {}
        """Of each submission, oldest first; the submission that was judged last comes last."""
        self._first: dict[str, Judgement] = {}
        """Of each fingerprint the earliest submission: whose code it is."""
        self._passed: dict[SubmissionId, Entry] = {}
        """Of each submission that passed, what would be ranked: every block asks for all of them."""
        self._logits: dict[Hotkey, LogitStanding] = {}

    async def load(self) -> None:
        """Read what earlier runs have left; called once before use. Raises ConfigError: it is incomplete."""
        async for records in self._journal.pages(VERDICT):
            for record in records:
                try:
                    self._take(Judgement.read(record))
                except KeyError as missing:
                    raise ConfigError(
                        f"the journal's verdict {record.key} is of an earlier build and has no {missing}: "
                        "go back to that build, or move the journal away and lose its verdicts"
                    ) from missing
            # Of a build that kept all of them whole; together, since they then share a commit.
            old = [one for one in records if one.state == ACKNOWLEDGED and not _is_short(one.data)]
            await asyncio.gather(*map(self._shorten, old))
        for record in await self._journal.list(LOGIT_CHECK):
            self._logits[Hotkey(record.key)] = _read_standing(record.data)

    # --- verdicts

    async def put_verdict(self, verdict: Verdict, lease: LeaseAnswer) -> Judgement:
        """Keep a signed verdict; afterwards it counts, and it will reach the API even after a crash."""
        data = {
            "submission_id": lease.submission_id,
            "hotkey": lease.miner_hotkey,
            "fork_url": lease.fork_url,
            "commit_hash": lease.commit_hash,
            "target_sequence_length": lease.target_sequence_length,
            "code_fixed_at": lease.code_fixed_at.isoformat(),
            "round_number": lease.round_number,
            "fingerprint": verdict.fingerprint,
            MEASURED: _measured(verdict),
            WHOLE: verdict.model_dump(mode="json"),
        }
        await self._journal.put(VERDICT, lease.lease_id, RECORDED, data)
        record = await self._journal.get(VERDICT, lease.lease_id)
        assert record is not None
        judgement = Judgement.read(record)
        self._take(judgement)
        return judgement

    async def unacknowledged_verdicts(self) -> list[Verdict]:
        """Verdicts that the API has yet to answer, oldest first."""
        records = await self._journal.list(VERDICT, [RECORDED])
        return [Verdict.model_validate(record.data[WHOLE]) for record in records]

    async def close_verdict(self, verdict: Verdict, *, is_refused: bool = False) -> None:
        """Note that the API has answered; one that it refused stays whole, as nobody else has it."""
        if is_refused:
            await self._journal.update(VERDICT, verdict.lease_id, state=REFUSED)
            return
        record = await self._journal.get(VERDICT, verdict.lease_id)
        assert record is not None
        await self._shorten(record)

    async def _shorten(self, record: Record) -> None:
        """Keep of a verdict that the API has what the ranking needs."""
        data = {name: value for name, value in record.data.items() if name not in (WHOLE, FIGURES)}
        data[MEASURED] = _measured_of(record.data)
        await self._journal.put(VERDICT, record.key, ACKNOWLEDGED, data)

    def known_fingerprints(self, lease: LeaseAnswer) -> dict[str, int]:
        """Fingerprints that first were another hotkey's, and earlier: whose code this one must not be."""
        return {
            fingerprint: first.submission_id
            for fingerprint, first in self._first.items()
            if first.hotkey != lease.miner_hotkey
            and _by_time(first) < (lease.code_fixed_at, lease.submission_id)
        }

    def passed_hotkeys(self) -> set[Hotkey]:
        """Hotkeys with a submission that passed."""
        return {entry.hotkey for entry in self._passed.values()}

    def judgement(self, submission_id: SubmissionId) -> Judgement:
        """The last word on a submission. Raises KeyError: there is none."""
        return self._judgements[submission_id][-1]

    def commit_hash(self, submission_id: SubmissionId) -> CommitHash | None:
        """What was judged under a number last; None before its first verdict."""
        judgements = self._judgements.get(submission_id)
        return judgements[-1].commit_hash if judgements else None

    def weighted_score(self, submission_id: SubmissionId) -> float:
        """The score of a submission, whoever its miner is by now; 0 when it has none."""
        entry = self._passed.get(submission_id)
        return 0.0 if entry is None else weighted_score(entry.tokens_per_sec, entry.target_sequence_length)

    def entries(self, now: datetime) -> list[Entry]:
        """What may be ranked: passed, not a copy of an earlier one, of a miner whose logits have passed."""
        verified = {
            hotkey
            for hotkey, standing in self._logits.items()
            if standing.outcome_at(now) is LogitOutcome.PASSED
        }
        return [
            entry
            for entry in self._passed.values()
            if entry.hotkey in verified and self._is_original(entry.submission_id)
        ]

    def _is_original(self, submission_id: SubmissionId) -> bool:
        """Whether the code was this miner's first; the original may have been judged after its copy."""
        judgement = self.judgement(submission_id)
        return self._first.get(judgement.fingerprint or "", judgement).hotkey == judgement.hotkey

    def _entry(self, judgement: Judgement) -> Entry:
        passed = [one for one in self._judgements[judgement.submission_id] if one.status is Status.PASSED]
        only = judgement.measured_tokens_per_sec if len(passed) == 1 else None
        return Entry(
            submission_id=judgement.submission_id,
            hotkey=judgement.hotkey,
            target_sequence_length=judgement.target_sequence_length,
            tokens_per_sec=only or pooled_throughput([one.trials for one in passed]),
            code_fixed_at=judgement.code_fixed_at,
            round_number=judgement.round_number,
        )

    def _take(self, judgement: Judgement) -> None:
        if judgement.status is Status.INFRASTRUCTURE:
            return
        number = judgement.submission_id
        # Taken out and put back, it comes last.
        before = self._judgements.pop(number, [])
        # An API that was restored from a backup gives its numbers again, to other submissions.
        self._judgements[number] = [*(one for one in before if one.code == judgement.code), judgement]
        if judgement.fingerprint:
            first = self._first.get(judgement.fingerprint, judgement)
            self._first[judgement.fingerprint] = min(first, judgement, key=_by_time)
        if judgement.status is Status.PASSED:
            self._passed[number] = self._entry(judgement)
        else:
            self._passed.pop(number, None)

    # --- logit checks

    async def put_logit_check(self, check: LogitCheck, *, pending_since: datetime | None) -> None:
        """Keep a miner's newest check."""
        hotkey = Hotkey(check.miner_hotkey)
        earlier = self._logits.get(hotkey)
        passed_at = earlier.passed_at if earlier is not None else None
        standing = LogitStanding(
            outcome=check.outcome,
            checked_at=check.checked_at,
            passed_at=check.checked_at if check.outcome is LogitOutcome.PASSED else passed_at,
            pending_since=pending_since,
        )
        data = {
            "outcome": standing.outcome.value,
            "checked_at": standing.checked_at.isoformat(),
            "passed_at": standing.passed_at and standing.passed_at.isoformat(),
            "pending_since": standing.pending_since and standing.pending_since.isoformat(),
            "check": check.model_dump(mode="json"),
        }
        await self._journal.put(LOGIT_CHECK, hotkey, RECORDED, data)
        self._logits[hotkey] = standing

    async def unacknowledged_logit_checks(self) -> list[LogitCheck]:
        """Newest checks that the API has yet to answer."""
        records = await self._journal.list(LOGIT_CHECK, [RECORDED])
        return [LogitCheck.model_validate(record.data["check"]) for record in records]

    async def close_logit_check(self, check: LogitCheck, *, is_refused: bool = False) -> None:
        """Note that the API has answered, unless there is a newer check by now."""
        record = await self._journal.get(LOGIT_CHECK, check.miner_hotkey)
        if record is not None and LogitCheck.model_validate(record.data["check"]) == check:
            state = REFUSED if is_refused else ACKNOWLEDGED
            await self._journal.update(LOGIT_CHECK, check.miner_hotkey, state=state)

    def logit_standing(self, hotkey: Hotkey) -> LogitStanding | None:
        """Where a miner's verification stands; None before its first check."""
        return self._logits.get(hotkey)

    def has_answered(self, hotkey: Hotkey) -> bool:
        """Whether a miner answered its last challenge, rightly or not."""
        standing = self._logits.get(hotkey)
        return standing is not None and standing.pending_since is None

    def logit_outcome(self, hotkey: Hotkey, now: datetime) -> LogitOutcome:
        """What counts for the ranking; pending before the first check."""
        standing = self._logits.get(hotkey)
        return LogitOutcome.PENDING if standing is None else standing.outcome_at(now)

    def summary(self, now: datetime) -> list[dict[str, Any]]:
        """The last word on the newest submissions in a few words, for people."""
        newest = islice(reversed(self._judgements.values()), SHOWN)
        return [
            {
                "submission_id": judgement.submission_id,
                "hotkey": judgement.hotkey,
                "status": judgement.status.value,
                "measured_tokens_per_sec": judgement.measured_tokens_per_sec,
                "logits": self.logit_outcome(judgement.hotkey, now).value,
            }
            for judgement in reversed([judgements[-1] for judgements in newest])
        ]


def _is_short(data: Mapping[str, Any]) -> bool:
    return WHOLE not in data and FIGURES not in data


def _measured_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the ranking needs of a verdict in the journal. Raises KeyError: it is not there."""
    if MEASURED in data:
        return dict(data[MEASURED])
    return _measured(Figures.model_validate(data[FIGURES]))


def _measured(figures: Figures) -> dict[str, Any]:
    return {
        "status": figures.status.value,
        "tokens_per_sec": figures.measured_tokens_per_sec,
        # Those of others are never pooled.
        "trials": list(trial_throughputs(figures)) if figures.status is Status.PASSED else [],
    }


def trial_throughputs(figures: Figures) -> tuple[float, ...]:
    """Tokens per second of each timed trial; the median alone when the trials are not in the evidence."""
    measured, seconds = figures.measured_tokens_per_sec, figures.evidence.get("trial_s")
    if measured is None:
        return ()
    if not isinstance(seconds, Sequence) or not seconds or not all(_is_positive(value) for value in seconds):
        return (measured,)
    tokens = measured * median(seconds)
    return tuple(tokens / value for value in seconds)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _by_time(judgement: Judgement) -> tuple[datetime, int]:
    return judgement.code_fixed_at, judgement.submission_id


def _read_standing(data: dict[str, Any]) -> LogitStanding:
    def moment(name: str) -> datetime | None:
        return None if data[name] is None else datetime.fromisoformat(data[name])

    return LogitStanding(
        outcome=LogitOutcome(data["outcome"]),
        checked_at=datetime.fromisoformat(data["checked_at"]),
        passed_at=moment("passed_at"),
        pending_since=moment("pending_since"),
    )
