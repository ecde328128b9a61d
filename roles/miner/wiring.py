"""The whole miner role on one screen."""

from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from node.devices import resolve_device
from node.host import registered_node
from node.metrics import LoopLagMonitor
from node.runtime import Component
from node.settings_model import Settings
from protocol.events import CommitmentRecorded, SubmissionRevealed
from roles.base import Base, open_base
from roles.evaluation import Referee
from roles.graph import Graph
from roles.inference.server import InferenceServer
from roles.miner.axon import AxonPublisher
from roles.miner.coordinator import CommitRevealCoordinator
from roles.miner.fork import WORK_FOLDER, open_fork
from roles.miner.history import HISTORY_FILE, History
from roles.miner.ledger import UNFINISHED, Stage, SubmissionLedger
from roles.miner.measuring import Measuring
from roles.miner.optimiser import Optimiser
from roles.miner.proposers import open_proposer
from roles.miner.submitter import Submitter
from roles.miner.target import Target, open_chooser
from roles.miner.verdicts import VerdictFollower
from roles.permission import require_registered
from roles.status import SHOWN, StatusKeeper


async def build(settings: Settings) -> Graph:
    """Open what the miner stands on and join its parts.

    optimiser --history--> submitter --CandidateVerified--> coordinator --SubmissionRevealed--> verdict
    follower; blocks drive the coordinator; the inference server answers validators, who find it by the axon.

    Raises ConfigError (GPU, GitHub, kernels, model), WalletError, NotPermitted, DeviceBusy, PortInUse.
    """
    device = resolve_device(settings.node.device)
    own, data_dir = settings.miner, settings.node.data_dir
    async with AsyncExitStack() as opened:
        base = await open_base(settings, "miner", settings.wallet.name or settings.wallet.miner_name, opened)
        await require_registered(base.chain, base.hotkey, netuid=settings.chain.netuid)
        clock, bus, api = base.clock, base.bus, base.api
        opened.enter_context(
            registered_node("miner", base.hotkey, device, data_dir, shares_gpu=own.share_gpu)
        )
        fork, ledger = open_fork(settings, clock), SubmissionLedger(base.journal)
        history = History(data_dir / HISTORY_FILE, clock)
        opened.push_async_callback(history.close)
        referee = Referee(settings, data_dir)
        measuring = Measuring(referee, data_dir / WORK_FOLDER)
        target = Target(None if own.choose_league else own.target_sequence_length)
        optimiser = Optimiser(
            settings=own,
            proposer=open_proposer(
                settings, device, referee=referee, history=history, target=target, clock=clock
            ),
            measuring=measuring,
            history=history,
            target=target,
            chooser=await open_chooser(settings, device, measuring, history, clock),
            clock=clock,
        )
        submitter = Submitter(
            settings=own,
            target=target,
            history=history,
            submissions=ledger,
            api=api,
            fork=fork,
            bus=bus,
            clock=clock,
        )
        coordinator = CommitRevealCoordinator(
            ledger=ledger,
            api=api,
            fork=fork,
            bus=bus,
            clock=clock,
            is_direct=own.submission == "direct",
            anchor=partial(base.chain.commit, base.wallet) if own.anchor_commitment else None,
        )
        follower = VerdictFollower(ledger=ledger, api=api, bus=bus, clock=clock, poll_s=own.poll_s)
        server = await open_inference(settings, base)
        axon = AxonPublisher(
            settings=settings,
            chain=base.chain,
            wallet=base.wallet,
            clock=clock,
            bound_port=settings.inference.port if server is None else server.port,
        )
        status = StatusKeeper(
            role="miner",
            hotkey=base.hotkey,
            data_dir=data_dir,
            bus=bus,
            clock=clock,
            metrics=base.metrics,
            facts=(CommitmentRecorded, SubmissionRevealed),
            sections={
                "chain": base.watcher.describe,
                "pending_reveals": lambda: describe_submissions(ledger, base, *UNFINISHED),
                "optimiser": optimiser.describe,
                "submissions": lambda: describe_submissions(ledger, base),
            },
        )
        parts: list[Component] = [base.metrics_server, LoopLagMonitor(base.metrics), base.watchdog]
        parts += [base.watcher, status, optimiser, submitter, coordinator, follower, axon]
        parts += [] if server is None else [server]
        return Graph(components=parts, closers=[opened.pop_all().aclose])


async def open_inference(settings: Settings, base: Base) -> InferenceServer | None:
    """The inference server with its port bound; None when it runs in a process of its own."""
    if not settings.miner.serve_inference:
        return None
    server = InferenceServer(
        settings, base.signer, base.chain.metagraph, metrics=base.metrics, clock=base.clock
    )
    await server.start()
    return server


async def describe_submissions(ledger: SubmissionLedger, base: Base, *stages: Stage) -> list[dict[str, Any]]:
    """The newest submissions (at the stages, when some are named); salts stay in the journal."""
    height = base.watcher.height
    return [
        {
            "submission_id": one.submission_id,
            "stage": one.stage.value,
            "commit": one.commit_hash,
            "target_sequence_length": one.target_sequence_length,
            "claim_tokens_per_sec": one.claim_tokens_per_sec,
            "reveal_block": one.reveal_block,
            "blocks_left": None
            if height is None or one.reveal_block is None
            else max(0, one.reveal_block - height),
            "verdict": one.verdict and one.verdict.value,
            "rank": one.rank,
            "reason": one.reason,
        }
        for one in await ledger.latest(SHOWN, *stages)
    ]
