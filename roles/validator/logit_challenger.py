"""Challenges the inference servers of miners whose kernels have passed, at times that they cannot foresee."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final, Protocol

from node.bus import Bus
from node.chain.interface import AxonAddress, Chain, Metagraph
from node.clock import Clock
from node.logs import get_logger
from protocol.errors import (
    ApiRefused,
    ApiUnavailable,
    ChainRejected,
    ChainUnavailable,
    WorkerFailed,
    WorkerRefused,
)
from protocol.events import LogitsChecked
from protocol.rules import LOGIT_PASS_SECONDS, LOGIT_PENDING_SECONDS
from protocol.types import Hotkey
from protocol.verdicts import LogitOutcome
from roles.api_client import SubnetApi, is_about_content
from roles.backoff import Backoff
from roles.validator.logits import LogitResult
from roles.validator.verdict_store import LogitStanding, VerdictStore

LOOK_EVERY_S: Final = 0.5
SIDE_BY_SIDE: Final = 4
"""Challenges under way at a time: one server that does not answer must not hold up all others."""
PENDING_SHARE: Final = 0.25
PENDING_MEAN_S: Final = 600.0
"""A server that was not reached is tried again sooner: after a share of the usual time, and this at most."""
LONGEST_S: Final = LOGIT_PASS_SECONDS / 4
"""However long the drawn time: a pass must not run out for want of a check."""
RECENT_S: Final = 300.0
"""Whoever passed so lately is not asked again before weights are set."""
CONFIRM_TRIES: Final = 3
CONFIRM_PAUSE_S: Final = 15.0
"""Between the tries before weights: a server that restarts keeps its share."""
METAGRAPH_MAX_AGE_S: Final = 30.0

_log = get_logger(__name__)


class Verifier(Protocol):
    """Whoever challenges one server; `roles.validator.logits.LogitVerifier`."""

    async def check(self, hotkey: Hotkey, axon: AxonAddress | None) -> LogitResult:
        """Challenge a server once."""


class LogitChallenger:
    """Component that checks every miner with a passed kernel: at once, then at random times.

    The mean time between two checks is `interval_s`; the times have no memory, so a check just made says
    nothing about the next. A check is on disk before the API hears of it, and is sent until the API answers,
    also by the next process.
    """

    name = "logit challenger"

    def __init__(
        self,
        *,
        verifier: Verifier,
        store: VerdictStore,
        api: SubnetApi,
        chain: Chain,
        bus: Bus,
        clock: Clock,
        interval_s: float,
        random_source: random.Random | None = None,
    ) -> None:
        self._verifier = verifier
        self._store = store
        self._api = api
        self._chain = chain
        self._bus = bus
        self._clock = clock
        self._interval_s = interval_s
        # A miner must not know when to have its model at hand: the system's randomness, not a seeded one.
        self._random = random_source if random_source is not None else random.SystemRandom()
        self._due_s: dict[Hotkey, float] = {}
        """By the clock that nobody sets: with a wrong date for a moment, miners would wait for that date."""
        self._running: set[Hotkey] = set()
        self._turns: defaultdict[Hotkey, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Nobody is challenged twice at a time."""
        self._slots = asyncio.Semaphore(SIDE_BY_SIDE)
        self._unsent = asyncio.Event()
        self._metagraph: Metagraph | None = None
        self._metagraph_at_s = float("-inf")

    async def run(self) -> None:
        """Check until cancelled."""
        self._unsent.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(), name="logit checks to the API")
            while True:
                for hotkey in self._due_hotkeys():
                    self._running.add(hotkey)
                    group.create_task(self._check(hotkey), name=f"logits of {hotkey}")
                await self._clock.sleep(LOOK_EVERY_S)

    def _due_hotkeys(self) -> list[Hotkey]:
        now_s = self._clock.monotonic()
        due = []
        for hotkey in self._store.passed_hotkeys() - self._running:
            if hotkey not in self._due_s:
                self._due_s[hotkey] = now_s + self._first_delay_s(hotkey)
            if self._due_s[hotkey] <= now_s:
                due.append(hotkey)
        return due

    def _first_delay_s(self, hotkey: Hotkey) -> float:
        """Seconds; at once, unless an earlier run of this node has passed it."""
        standing = self._store.logit_standing(hotkey)
        if standing is None or standing.outcome is not LogitOutcome.PASSED:
            return 0.0
        age_s = max(0.0, (self._clock.now() - standing.checked_at).total_seconds())
        return self._delay_s(standing.outcome) - age_s

    def _delay_s(self, outcome: LogitOutcome) -> float:
        mean_s = self._interval_s
        if outcome is LogitOutcome.PENDING:
            mean_s = min(mean_s * PENDING_SHARE, PENDING_MEAN_S)
        return min(self._random.expovariate(1 / mean_s), LONGEST_S)

    async def confirm(self, hotkeys: Collection[Hotkey]) -> set[Hotkey]:
        """Challenge miners that are about to be paid, unless they have passed a moment ago.

        Returns those that did not answer any of several tries. What keeps this validator from asking counts
        for the miner.
        """
        silent = await asyncio.gather(*(self._is_silent(hotkey) for hotkey in hotkeys))
        return {hotkey for hotkey, is_silent in zip(hotkeys, silent, strict=True) if is_silent}

    async def _is_silent(self, hotkey: Hotkey) -> bool:
        for number in range(CONFIRM_TRIES):
            if number:
                await self._clock.sleep(CONFIRM_PAUSE_S)
            async with self._turns[hotkey]:
                if self._has_just_passed(hotkey):
                    return False
                started = self._clock.now()
                await self._check_in_turn(hotkey)
            standing = self._store.logit_standing(hotkey)
            if standing is None or standing.checked_at < started:
                return False
            if standing.pending_since is None:
                return False
        return True

    def _has_just_passed(self, hotkey: Hotkey) -> bool:
        standing = self._store.logit_standing(hotkey)
        if standing is None or standing.outcome is not LogitOutcome.PASSED:
            return False
        return abs(self._clock.now() - standing.checked_at) < timedelta(seconds=RECENT_S)

    async def _check(self, hotkey: Hotkey) -> None:
        try:
            async with self._turns[hotkey]:
                # It may have been challenged for the weights meanwhile.
                if self._due_s[hotkey] <= self._clock.monotonic():
                    await self._check_in_turn(hotkey)
        finally:
            self._running.discard(hotkey)

    async def _check_in_turn(self, hotkey: Hotkey) -> None:
        async with self._slots:
            outcome = await self._challenge(hotkey)
        self._due_s[hotkey] = self._clock.monotonic() + self._delay_s(outcome)

    async def _challenge(self, hotkey: Hotkey) -> LogitOutcome:
        """Challenge one miner; the outcome as it was recorded, pending when nothing could be asked."""
        try:
            metagraph = await self._fresh_metagraph()
        except (ChainUnavailable, ChainRejected) as error:
            _log.warning("no logit check without the chain", hotkey=hotkey, reason=str(error))
            return LogitOutcome.PENDING
        neuron = metagraph.neurons.get(hotkey)
        if neuron is None:
            _log.info("no logit check: not registered any more", hotkey=hotkey)
            return LogitOutcome.PASSED
        try:
            result = await self._verifier.check(hotkey, neuron.axon)
        except (WorkerFailed, WorkerRefused) as error:
            # Our own reference is at fault: that says nothing about the miner.
            _log.error("no logit check without the reference model", hotkey=hotkey, reason=str(error))
            return LogitOutcome.PENDING
        return await self._record(hotkey, result)

    async def _record(self, hotkey: Hotkey, result: LogitResult) -> LogitOutcome:
        now = self._clock.now()
        pending_since = _pending_since(result, self._store.logit_standing(hotkey), now)
        outcome, reason = result.outcome, result.reason
        if pending_since is not None and now - pending_since >= timedelta(seconds=LOGIT_PENDING_SECONDS):
            outcome = LogitOutcome.FAILED
            reason = f"not reached since {pending_since.isoformat(timespec='seconds')}: {reason}"
        check = self._api.sign_logit_check(
            miner_hotkey=hotkey,
            outcome=outcome,
            cosine_similarity=result.cosine_similarity,
            max_abs_diff=result.max_abs_diff,
            step=result.step,
            tokens_per_sec=result.tokens_per_sec,
            reason=reason[:1000],
            checked_at=now,
        )
        await self._store.put_logit_check(check, pending_since=pending_since)
        self._unsent.set()
        log = _log.info if outcome is LogitOutcome.PASSED else _log.warning
        log(
            "logits checked",
            hotkey=hotkey,
            outcome=outcome.value,
            reason=reason,
            cosine_similarity=result.cosine_similarity,
            max_abs_diff=result.max_abs_diff,
            step=result.step,
            tokens_per_sec=result.tokens_per_sec,
        )
        await self._bus.publish(LogitsChecked(hotkey=hotkey, outcome=outcome))
        return outcome

    async def _fresh_metagraph(self) -> Metagraph:
        age_s = self._clock.monotonic() - self._metagraph_at_s
        if self._metagraph is None or age_s > METAGRAPH_MAX_AGE_S:
            self._metagraph = await self._chain.metagraph()
            self._metagraph_at_s = self._clock.monotonic()
        return self._metagraph

    async def _deliver(self) -> None:
        backoff = Backoff(self._clock)
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            try:
                await self._send_checks()
            except (ApiRefused, ApiUnavailable) as error:
                self._unsent.set()
                await backoff.wait(error)
            else:
                backoff = Backoff(self._clock)

    async def _send_checks(self) -> None:
        for check in await self._store.unacknowledged_logit_checks():
            is_refused = False
            try:
                await self._api.send_logit_check(check)
            except ApiRefused as error:
                if not is_about_content(error):
                    raise
                is_refused = True
                _log.error("the API refused a logit check", hotkey=check.miner_hotkey, reason=str(error))
            await self._store.close_logit_check(check, is_refused=is_refused)


def _pending_since(result: LogitResult, earlier: LogitStanding | None, now: datetime) -> datetime | None:
    """When the tries that have not reached the server began; they go on after they have counted as failed."""
    if result.outcome is not LogitOutcome.PENDING:
        return None
    return now if earlier is None or earlier.pending_since is None else min(earlier.pending_since, now)
