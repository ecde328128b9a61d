"""What can go wrong between a node and a chain."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Faults:
    """Switches of a SubtensorNode; each holds until it is set back, counters until they are used up."""

    delay_s: float = 0.0
    """Every answer comes this much later."""
    is_silent: bool = False
    """A black hole: requests are read and never answered."""
    stale_blocks: int = 0
    """The head is shown this far behind, as an endpoint that lags behind a balancer does."""
    nonce_offset: int = 0
    """Told with account_nextIndex: the client signs a nonce that the pool refuses."""
    refuse_handshake: int | None = None
    """HTTP status that new connections are refused with."""
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """JSON-RPC error (code, message) by method."""
    reject_dispatch: str | None = None
    """Name of the SubtensorModule error that every extrinsic fails with after inclusion."""
    lose_answers: int = 0
    """So many extrinsics are carried out, and the connection is dropped before the answer."""
    swallow: int = 0
    """So many extrinsics are reported as successful and not carried out."""


@dataclass
class Seen:
    """What a SubtensorNode has been asked."""

    requests: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    extrinsics: list[str] = field(default_factory=list)
    """Pallet.call of every extrinsic that entered a block, in order."""
