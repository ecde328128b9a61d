"""Opens the proposer that the settings name."""

from node.clock import Clock
from node.settings_model import Settings
from protocol.errors import ConfigError
from roles.evaluation import Referee
from roles.miner.agent_proposer import AgentProposer
from roles.miner.candidate import Proposer
from roles.miner.history import History
from roles.miner.language_model import open_language_model
from roles.miner.proposer import FilesProposer, ShippedProposer
from roles.miner.target import Target
from roles.miner.tuner_proposer import TunerProposer


def open_proposer(
    settings: Settings, device: str, *, referee: Referee, history: History, target: Target, clock: Clock
) -> Proposer:
    """The proposer that `miner.proposer` names, for kernels on `device`. Raises ConfigError."""
    own = settings.miner
    if own.proposer == "shipped":
        return ShippedProposer(own.variants, clock)
    if own.proposer == "agent":
        if settings.validator.unsafe_no_sandbox:
            raise ConfigError(
                "miner.proposer is 'agent' and validator.unsafe_no_sandbox is set: what a language model "
                "writes runs in a sandbox only, install bubblewrap"
            )
        return AgentProposer(open_language_model(settings.agent, device, clock), history, target, clock)
    if own.proposer == "files":
        if own.kernel_dir is None:
            raise ConfigError("miner.proposer is 'files' but miner.kernel_dir names no folder: set it")
        return FilesProposer(own.kernel_dir, clock)
    return TunerProposer(
        target,
        clock,
        device=device,
        data_dir=settings.node.data_dir,
        budget_s=own.tuner_budget_s,
        run_length=referee.sequence_length,
    )
