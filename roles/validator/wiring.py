"""The whole validator role on one screen."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from node.metrics import LoopLagMonitor
from node.runtime import Component
from node.sandbox import detect_tier
from node.settings_model import Settings
from protocol.errors import SandboxUnavailable
from protocol.events import KernelJudged, LogitsChecked, WeightsSet
from roles.base import open_base
from roles.evaluation import Referee, needed_isolation
from roles.graph import Graph
from roles.permission import require_validator
from roles.places import places_of
from roles.status import StatusKeeper
from roles.validator.comparison_store import ComparisonStore
from roles.validator.evaluation_loop import EvaluationLoop
from roles.validator.leads import Leads
from roles.validator.logit_challenger import LogitChallenger
from roles.validator.logits import LogitVerifier
from roles.validator.verdict_sender import VerdictSender
from roles.validator.verdict_store import VerdictStore
from roles.validator.weight_setter import WeightSetter


async def build(settings: Settings) -> Graph:
    """Open what the validator stands on and join its parts.

    The evaluation loop and the logit challenger write to the verdict store; the weight setter ranks what is
    in it, with the leads that re-runs have confirmed, at the first block that allows. All three tell the API
    or the chain, and the status.

    Raises ConfigError (GPU, model), WalletError, NotPermitted, SandboxUnavailable, DeviceBusy, PortInUse.
    """
    places = places_of(settings)
    own, data_dir = settings.validator, settings.node.data_dir
    async with AsyncExitStack() as opened:
        name = settings.wallet.name or settings.wallet.validator_name
        base = await open_base(settings, "validator", name, opened)
        clock, bus, api, chain = base.clock, base.bus, base.api, base.chain
        min_stake_tao = settings.api.min_validator_stake_tao
        await require_validator(chain, base.hotkey, netuid=settings.chain.netuid, min_stake_tao=min_stake_tao)
        await require_sandbox(settings)
        store = VerdictStore(base.journal)
        await store.load()
        comparisons = ComparisonStore(base.journal, store.commit_hash)
        await comparisons.load()
        leads = Leads(settings=settings, api=api, store=store, comparisons=comparisons, clock=clock)
        verifier = LogitVerifier(settings, base.signer, clock=clock)
        opened.push_async_callback(verifier.close)
        sender = VerdictSender(api=api, store=store, comparisons=comparisons)
        loops = [
            EvaluationLoop(
                settings=settings,
                api=api,
                referee=Referee(settings, data_dir, place=place, do_verdicts_score=True),
                store=store,
                sender=sender,
                leads=leads,
                bus=bus,
                clock=clock,
                metrics=base.metrics,
                is_device_missing=place.is_missing,
            )
            for place in places
        ]
        challenger = LogitChallenger(
            verifier=verifier,
            store=store,
            api=api,
            chain=chain,
            bus=bus,
            clock=clock,
            interval_s=own.logit_interval_s,
        )
        setter = WeightSetter(
            store=store,
            leads=leads,
            chain=chain,
            wallet=base.wallet,
            bus=bus,
            clock=clock,
            metrics=base.metrics,
            confirm=challenger.confirm,
            interval_blocks=own.weights_interval_blocks,
            is_local_chain=settings.is_local_chain,
        )

        async def verdicts() -> list[dict[str, Any]]:
            return store.summary(clock.now())

        status = StatusKeeper(
            role="validator",
            hotkey=base.hotkey,
            data_dir=data_dir,
            bus=bus,
            clock=clock,
            metrics=base.metrics,
            facts=(KernelJudged, LogitsChecked, WeightsSet),
            sections={
                "chain": base.watcher.describe,
                "verdicts": verdicts,
                "comparisons": leads.describe,
                "weights": setter.describe,
            },
        )
        parts: list[Component] = [base.metrics_server, LoopLagMonitor(base.metrics), base.watchdog]
        parts += [base.watcher, status, *loops, challenger, setter]
        return Graph(components=parts, closers=[opened.pop_all().aclose])


async def require_sandbox(settings: Settings) -> None:
    """Raise SandboxUnavailable when this host would run hostile code too freely beside a wallet."""
    if settings.executor.backend != "local":
        # Hosts that run it instead refuse by themselves.
        return
    tier = await asyncio.to_thread(detect_tier)
    if not tier.suffices(needed_isolation(settings, do_verdicts_score=True)):
        raise SandboxUnavailable(
            "this host cannot isolate submissions, which are hostile code: install bubblewrap "
            "(Debian: apt-get install bubblewrap); `quasar-node doctor` says what is missing"
        )
