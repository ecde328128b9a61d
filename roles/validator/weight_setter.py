"""Sets this validator's weights: its own verdicts, ranked by the protocol, as shares on the chain."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final

from node.bus import Bus
from node.chain.interface import Chain, HotkeyHolder, Metagraph, WeightRules
from node.clock import Clock
from node.logs import get_logger
from node.metrics import Metrics
from protocol.errors import ChainRejected, ChainUnavailable, NotPermitted, QuasarError
from protocol.events import BlockAdvanced, WeightsSet
from protocol.ranking import Entry, Place, reward_shares
from protocol.types import BlockHeight, Hotkey
from roles.validator.leads import Basis, Leads
from roles.validator.verdict_store import VerdictStore

SAME_SHARE: Final = 1e-3
"""The chain keeps weights in 16 bits: shares closer than this are the same."""
LONGEST_RETRY_BLOCKS: Final = 64
STALE_INTERVALS: Final = 3
CONFIRM_PATIENCE_S: Final = 600.0
"""Challenges before the weights take no longer than this; a pass from earlier counts then."""
LEADS_PATIENCE_S: Final = 1800.0
"""Weights wait for re-runs no longer than this."""

Confirm = Callable[[Collection[Hotkey]], Awaitable[set[Hotkey]]]

_log = get_logger(__name__)


class WeightSetter:
    """Component that sets weights when the ranking has changed, and every `interval_blocks` anyhow.

    It acts at the first height at or after the due one, as far as the chain's rate limit allows. Whoever is
    about to be paid is challenged first by `confirm`, which names those that are silent, and re-runs that
    `leads` is about to make are waited for. Only what was read back from the chain counts as set.
    """

    name = "weight setter"

    def __init__(
        self,
        *,
        store: VerdictStore,
        leads: Leads,
        chain: Chain,
        wallet: HotkeyHolder,
        bus: Bus,
        clock: Clock,
        metrics: Metrics,
        confirm: Confirm,
        interval_blocks: int,
        is_local_chain: bool,
    ) -> None:
        self._store = store
        self._leads = leads
        self._chain = chain
        self._wallet = wallet
        self._hotkey = Hotkey(wallet.hotkey.ss58_address)
        self._bus = bus
        self._clock = clock
        self._metrics = metrics
        self._confirm = confirm
        self._silent: set[Hotkey] = set()
        """Miners that did not answer before the last weights: not paid until they do."""
        self._late: set[asyncio.Future[set[Hotkey]]] = set()
        self._interval_blocks = interval_blocks
        self._is_local_chain = is_local_chain
        self._blocks = bus.subscribe(BlockAdvanced)
        self._height = BlockHeight(0)
        self._not_before = BlockHeight(0)
        self._refresh_at = BlockHeight(0)
        self._failures = 0
        self._warned_at = BlockHeight(0)
        self._updated_at: BlockHeight | None = None
        """When the weights on chain were last set (0: never), as far as it was read."""
        self._settled: Basis | None = None
        """What the weights on chain were made of."""
        self._waits_since_s: float | None = None
        """When the wait for re-runs began."""
        self._places: Sequence[Place] = ()
        self._weights: dict[Hotkey, float] = {}

    async def run(self) -> None:
        """Look at every block until cancelled."""
        async for event in self._blocks:
            self._height = event.height
            if self._updated_at is not None:
                self._metrics.blocks_since_weights.set(event.height - self._updated_at)
                self._warn_when_stale(event.height - self._updated_at)
            if self._is_due():
                await self._try()

    def _is_due(self) -> bool:
        # Looked at every time, so that each wait has its own beginning.
        if self._waits_for_leads() or self._height < self._not_before:
            return False
        return self._height >= self._refresh_at or self._basis() != self._settled

    def _waits_for_leads(self) -> bool:
        """True while a re-run is about to change the ranking, as far as patience goes."""
        now_s = self._clock.monotonic()
        if not self._leads.are_settling():
            self._waits_since_s = None
            return False
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        return now_s - self._waits_since_s < LEADS_PATIENCE_S

    def _warn_when_stale(self, since_blocks: int) -> None:
        """Say so, once an interval, when weights are much older than they should be."""
        limit_blocks = STALE_INTERVALS * self._interval_blocks
        if since_blocks > limit_blocks and self._height >= self._warned_at + self._interval_blocks:
            self._warned_at = self._height
            _log.error("weights on chain are stale", blocks=since_blocks, limit_blocks=limit_blocks)

    def _entries(self) -> list[Entry]:
        self._silent = {hotkey for hotkey in self._silent if not self._store.has_answered(hotkey)}
        return [entry for entry in self._store.entries(self._clock.now()) if entry.hotkey not in self._silent]

    def _basis(self) -> Basis:
        return self._entries(), self._leads.compared()

    async def _confirm_paid(self, metagraph: Metagraph) -> None:
        """Challenge those who would be paid, and whoever moves up for one that fails or is silent."""
        confirmed: set[Hotkey] = set()
        deadline_s = self._clock.monotonic() + CONFIRM_PATIENCE_S
        while paid := set(reward_shares(self._ranked(metagraph))) - confirmed:
            challenges = asyncio.ensure_future(self._confirm(paid))
            try:
                # Never cancelled for lateness: that would end the process that holds the reference.
                await asyncio.wait({challenges}, timeout=deadline_s - self._clock.monotonic())
            except asyncio.CancelledError:
                challenges.cancel()
                raise
            if not challenges.done():
                _log.warning("not every miner was challenged before the weights", challenged=len(confirmed))
                self._late.add(challenges)
                challenges.add_done_callback(self._end_late)
                return
            self._silent |= challenges.result()
            confirmed |= paid

    def _end_late(self, challenges: asyncio.Future[set[Hotkey]]) -> None:
        """What challenges that came too late for the weights have found is in the store."""
        self._late.discard(challenges)
        if not challenges.cancelled() and (error := challenges.exception()) is not None:
            _log.error("late challenges failed", reason=f"{type(error).__name__}: {error}")

    def _ranked(self, metagraph: Metagraph) -> Sequence[Place]:
        live = [entry for entry in self._entries() if entry.hotkey in metagraph.neurons]
        return self._leads.ranking(live).places

    async def _try(self) -> None:
        """One attempt; what fails for now is tried again some blocks later."""
        try:
            await self._update()
        except (ChainRejected, ChainUnavailable, NotPermitted) as error:
            self._failures += 1
            wait = min(2**self._failures, LONGEST_RETRY_BLOCKS)
            self._not_before = BlockHeight(self._height + wait)
            self._metrics.set_weights.labels(_result(error)).inc()
            _log.error("weights not set", reason=str(error), height=self._height, next_attempt_in_blocks=wait)
        else:
            self._failures = 0

    async def _update(self) -> None:
        metagraph, rules = await self._chain.metagraph(), await self._chain.weight_rules()
        self._height = max(self._height, metagraph.height)
        neuron = metagraph.neurons.get(self._hotkey)
        if neuron is None:
            raise NotPermitted(
                f"hotkey {self._hotkey} is not registered any more: its weights count for nobody"
            )
        self._updated_at = neuron.last_update
        await self._confirm_paid(metagraph)
        basis = self._basis()
        self._places = self._ranked(metagraph)
        wanted = self._wanted(metagraph)
        refresh_at = BlockHeight(neuron.last_update + self._interval_blocks)
        if not wanted:
            # Nobody has earned anything on a chain where nothing goes to an owner.
            self._settle(basis, BlockHeight(metagraph.height + self._interval_blocks))
            return
        allowed_at = BlockHeight(neuron.last_update + rules.rate_limit_blocks if neuron.last_update else 0)
        is_current = metagraph.height < refresh_at and await self._shows(wanted, rules)
        if is_current:
            self._settle(basis, refresh_at)
        elif metagraph.height < allowed_at:
            _log.info("weights wait for the chain's rate limit", due=allowed_at, height=metagraph.height)
            self._not_before = allowed_at
        else:
            await self._set(wanted, rules)
            self._settle(basis, BlockHeight(self._height + self._interval_blocks))

    def _wanted(self, metagraph: Metagraph) -> dict[Hotkey, float]:
        """Shares that sum to 1: of the places, and of the owner for what nobody has earned; empty: none."""
        shares = reward_shares(self._places)
        owner = metagraph.owner_hotkey
        unearned = 1.0 - sum(shares.values())
        if not self._is_local_chain and unearned > SAME_SHARE:
            if owner is not None and owner in metagraph.neurons:
                shares[owner] = shares.get(owner, 0.0) + unearned
            else:
                _log.warning("the unearned share cannot go to the owner", owner=owner, share=unearned)
        total = sum(shares.values())
        return {hotkey: share / total for hotkey, share in shares.items()}

    async def _set(self, wanted: Mapping[Hotkey, float], rules: WeightRules) -> None:
        """Set weights and read them back. Raises ChainRejected when the chain shows others."""
        _log.info("setting weights", height=self._height, places=_told(self._places), weights=dict(wanted))
        await self._chain.set_weights(self._wallet, wanted)
        shown = dict(wanted)
        if not rules.commit_reveal:
            # With commit-reveal the chain shows them epochs later; the last update is all there is to see.
            shown = await self._chain.weights_of(self._hotkey)
            if not wanted.keys() <= shown.keys():
                raise ChainRejected(
                    f"the chain shows weights for {sorted(shown)} after weights for {sorted(wanted)} were set"
                )
        self._height = max(self._height, await self._chain.height())
        self._weights = shown
        self._updated_at = self._height
        self._metrics.set_weights.labels("success").inc()
        self._metrics.weights_last_success.set(self._clock.now().timestamp())
        await self._bus.publish(WeightsSet(height=self._height, weights=tuple(shown.items())))

    async def _shows(self, wanted: Mapping[Hotkey, float], rules: WeightRules) -> bool:
        """True when the chain has these weights already, from an earlier run for instance."""
        is_hidden = rules.commit_reveal and bool(self._weights)
        shown = self._weights if is_hidden else await self._chain.weights_of(self._hotkey)
        self._weights = dict(shown)
        return all(
            abs(shown.get(hotkey, 0.0) - wanted.get(hotkey, 0.0)) <= SAME_SHARE
            for hotkey in shown.keys() | wanted.keys()
        )

    def _settle(self, basis: Basis, refresh_at: BlockHeight) -> None:
        self._settled = basis
        self._refresh_at = refresh_at
        self._not_before = BlockHeight(0)

    async def describe(self) -> dict[str, Any]:
        """The ranking and the weights as last seen, for the status file."""
        return {
            "ranking": _told(self._places),
            "weights": dict(self._weights),
            "updated_at": self._updated_at,
            "refresh_at": self._refresh_at,
        }


def _told(places: Sequence[Place]) -> list[dict[str, Any]]:
    return [
        {
            "place": place.place,
            "hotkey": place.entry.hotkey,
            "submission_id": place.entry.submission_id,
            "tokens_per_sec": place.entry.tokens_per_sec,
            "score": place.score,
            "share": place.share,
        }
        for place in places
    ]


def _result(error: QuasarError) -> str:
    names = {ChainRejected: "rejected", ChainUnavailable: "unavailable", NotPermitted: "not_permitted"}
    return names.get(type(error), "failed")
