"""The hash of a commitment on chain before the API hears of it."""

from collections.abc import Awaitable, Callable

from node.chain.interface import OnChainCommitment
from node.logs import get_logger
from protocol.errors import ChainRejected

Anchor = Callable[[bytes], Awaitable[OnChainCommitment]]
"""Puts data into the hotkey's slot on chain; the same data again changes nothing."""

_log = get_logger(__name__)


async def is_anchored(anchor: Anchor | None, commitment_hash: str, **about: object) -> bool:
    """Put the hash on chain when that is wanted; False when the chain refuses it.

    Raises ChainUnavailable, and NotPermitted for a hotkey that is not registered any more.
    """
    if anchor is None:
        return False
    try:
        anchored = await anchor(bytes.fromhex(commitment_hash))
    except ChainRejected as error:
        _log.warning("committed without an anchor", reason=str(error), **about)
        return False
    _log.info("commitment anchored on chain", height=anchored.height, **about)
    return True
