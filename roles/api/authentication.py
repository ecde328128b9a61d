"""Who is calling: signed bodies from miners, signed requests (btauth/1) from validators."""

from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeVar

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncConnection

from node.chain.interface import Neuron
from node.clock import Clock
from node.http_server import ApiProblem, json_body
from node.settings_model import ApiSection
from protocol.auth import verify_legacy, verify_request
from protocol.errors import SignatureInvalid
from protocol.messages import CommitSubmission, RevealSubmission, SubmitKernel
from protocol.signing import verify_text
from protocol.types import Hotkey
from roles.api.chain_view import ChainView
from roles.api.database import Database
from roles.api.limits import Limits
from roles.api.store_nonces import forget_nonces, use_nonce

MinerMessageT = TypeVar("MinerMessageT", CommitSubmission, RevealSubmission, SubmitKernel)

NONCE_MEMORY_S: Final = 60.0
"""Longer than any signed request is accepted after it was signed."""
SIGNED_REQUEST_HEADER: Final = "X-Bittensor-Signature"
LEGACY_HEADERS: Final = ("Hotkey", "Signature")


class Authentication:
    """Checks signatures, nonces, registration and permits; every refusal is an HTTP answer of its own."""

    def __init__(
        self,
        settings: ApiSection,
        database: Database,
        chain: ChainView,
        limits: Limits,
        clock: Clock,
        *,
        self_hotkey: str,
    ) -> None:
        self._settings = settings
        self._database = database
        self._chain = chain
        self._limits = limits
        self._clock = clock
        self._self_hotkey = self_hotkey
        self._forgot_at_s = float("-inf")

    async def miner(
        self,
        request: web.Request,
        model: type[MinerMessageT],
        text_of: Callable[[MinerMessageT], str],
        *,
        limited: bool = True,
    ) -> tuple[MinerMessageT, Neuron]:
        """The message of a registered miner that signed it.

        Raises ApiProblem (400, 413, 415, 422, 429; 403 when another hotkey signed the request),
        SignatureInvalid (401), NotPermitted (403), ChainUnavailable (503).
        """
        if limited:
            self._limits.check_address(request)
        message = await json_body(request, model)
        signer = await self._header_signer(request)
        if signer is not None:
            check_same_hotkey("miner_hotkey", message.miner_hotkey, signer)
        if not self._is_legacy(request):
            verify_text(message.miner_hotkey, text_of(message), message.signature)
        neuron = await self._chain.neuron(message.miner_hotkey)
        if limited:
            self._limits.check_hotkey(message.miner_hotkey)
        return message, neuron

    async def validator(self, request: web.Request) -> Neuron:
        """The validator that signed the request.

        Raises SignatureInvalid (401), NotPermitted (403), ChainUnavailable (503).
        """
        hotkey = await self._verified(request)
        return await self._chain.validator(hotkey, self._settings.min_validator_stake_tao)

    async def _header_signer(self, request: web.Request) -> Hotkey | None:
        if SIGNED_REQUEST_HEADER in request.headers:
            return await self._verified(request)
        return verify_legacy(request.headers) if self._is_legacy(request) else None

    def _is_legacy(self, request: web.Request) -> bool:
        return self._settings.legacy_auth and all(name in request.headers for name in LEGACY_HEADERS)

    async def _verified(self, request: web.Request) -> Hotkey:
        now = self._clock.now()
        caller = verify_request(
            request.headers,
            await request.read(),
            method=request.method,
            path=request.raw_path,
            self_hotkey=self._self_hotkey,
            now_ns=int(now.timestamp() * 1e9),
        )
        forgets = self._clock.monotonic() - self._forgot_at_s > NONCE_MEMORY_S

        async def remember(connection: AsyncConnection) -> bool:
            if forgets:
                await forget_nonces(connection, now - timedelta(seconds=NONCE_MEMORY_S))
            return await use_nonce(connection, caller.hotkey, caller.nonce_ns, now)

        if not await self._database.write(remember, quiet=True):
            raise SignatureInvalid(
                f"the request with nonce {caller.nonce_ns} was received before: sign every request anew"
            )
        if forgets:
            self._forgot_at_s = self._clock.monotonic()
        return caller.hotkey


def check_same_hotkey(field: str, named: str, signer: str) -> None:
    """Raise ApiProblem 403 when a message names another hotkey than the one that signed the request."""
    if named != signer:
        raise ApiProblem(403, f"the request is signed by {signer}, who cannot act for {field} {named}")
