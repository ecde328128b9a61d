"""The validator's ranking: its own verdicts, and re-runs of both before a lead decides what anybody earns."""

from collections.abc import Iterable
from typing import Any

from node.clock import Clock
from node.logs import get_logger
from node.settings_model import Settings
from protocol.messages import ComparisonFigures, GitSource
from protocol.ranking import Compared, Entry, Ranking, rank
from protocol.types import SubmissionId
from protocol.verdicts import LeadOutcome
from roles.api_client import SubnetApi
from roles.evaluation import git_source
from roles.evaluator import Evaluator
from roles.validator.comparison_store import ComparisonStore, Pair
from roles.validator.verdict_store import VerdictStore

Basis = tuple[list[Entry], list[Compared]]
"""What a ranking rests on."""

_log = get_logger(__name__)


class Leads:
    """Ranks, and has open leads looked at; shared by all that judge and by whoever sets weights."""

    def __init__(
        self,
        *,
        settings: Settings,
        api: SubnetApi,
        store: VerdictStore,
        comparisons: ComparisonStore,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._api = api
        self._store = store
        self._comparisons = comparisons
        self._clock = clock
        self._running: set[Pair] = set()
        self._ranked: tuple[Basis, Ranking] | None = None
        """The last ranking of everything that is live, with what it rests on."""

    def compared(self) -> list[Compared]:
        """How leads were settled so far."""
        return [
            Compared(
                later=pair.later,
                earlier=pair.earlier,
                counts=is_counted,
                earlier_score=self._store.weighted_score(pair.earlier),
            )
            for pair, is_counted in self._comparisons.settled().items()
        ]

    def ranking(self, entries: Iterable[Entry]) -> Ranking:
        """Rank with the leads that count."""
        return rank(entries, self.compared())

    def are_settling(self) -> bool:
        """Whether the ranking is about to change: an open lead is being looked at, or was not yet."""
        return any(
            pair in self._running or self._comparisons.tries(pair) is None for pair in self._open_pairs()
        )

    async def compare_next(self, referee: Evaluator) -> LeadOutcome | None:
        """Have both submissions of the next open lead run in turn; None: none is due."""
        pair = self._next()
        if pair is None:
            return None
        self._running.add(pair)
        try:
            return await self._compare(pair, referee)
        finally:
            self._running.discard(pair)

    def _next(self) -> Pair | None:
        now = self._clock.now()
        under_way = {pair.later for pair in self._running}
        for pair in self._open_pairs():
            tries = self._comparisons.tries(pair)
            if pair.later not in under_way and (tries is None or tries.is_due_at(now)):
                return pair
        return None

    def _open_pairs(self) -> list[Pair]:
        # Asked for at every block and every look at the queue: ranked again when something is new.
        basis = self._store.entries(self._clock.now()), self.compared()
        if self._ranked is None or self._ranked[0] != basis:
            self._ranked = basis, rank(*basis)
        leads = self._ranked[1].open_leads
        return [Pair(lead.later.submission_id, lead.earlier.submission_id) for lead in leads]

    async def _compare(self, pair: Pair, referee: Evaluator) -> LeadOutcome:
        log = _log.bind(later=pair.later, earlier=pair.earlier)
        log.info("a lead is looked at: both run in turn")
        commits = self._comparisons.commits(pair)
        report = await referee.compare(earlier=self._runner(pair.earlier), later=self._runner(pair.later))
        figures = report.figures
        comparison = self._api.sign_comparison(
            **{name: getattr(figures, name) for name in ComparisonFigures.model_fields},
            later_submission_id=pair.later,
            earlier_submission_id=pair.earlier,
        )
        tries = await self._comparisons.put(comparison, commits, self._clock.now())
        log.info(
            "lead looked at",
            outcome=figures.outcome.value,
            ratio=figures.ratio,
            settled=tries.is_settled,
            reason=figures.evidence.get("reason", ""),
        )
        return figures.outcome

    def _runner(self, submission_id: SubmissionId) -> tuple[GitSource, int]:
        judged = self._store.judgement(submission_id)
        source = git_source(self._settings, fork_url=judged.fork_url, commit_hash=judged.commit_hash)
        return source, judged.target_sequence_length

    async def describe(self) -> list[dict[str, Any]]:
        """The last re-runs, for the status file."""
        return self._comparisons.summary()
