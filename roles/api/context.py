"""What request handlers share."""

from dataclasses import dataclass

from node.clock import Clock
from node.metrics import Metrics
from node.settings_model import Settings
from protocol.signing import Signer
from roles.api.authentication import Authentication
from roles.api.chain_view import ChainView
from roles.api.consensus import Stakes
from roles.api.database import Database
from roles.api.limits import Limits
from roles.api.rounds import RoundKeeper
from roles.api.standing import StandingKeeper


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The parts behind the handlers; everything that changes lives in the database."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    signer: Signer
    database: Database
    chain: ChainView
    authentication: Authentication
    limits: Limits
    rounds: RoundKeeper
    standing: StandingKeeper

    def stakes(self) -> Stakes:
        """What every validator's word weighs."""
        return self.chain.stakes(self.settings.api.min_validator_stake_tao)
