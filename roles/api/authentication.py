"""Who is calling: signed bodies from miners, signed requests (btauth/1) from validators."""

from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeVar

from aiohttp import web
from sqlalchemy import Connection

from node.chain.interface import Neuron
from node.clock import Clock
from node.http_server import ApiProblem, json_body, read_body
from node.settings_model import ApiSection
from protocol.auth import AuthenticatedCaller, verify_legacy, verify_request
from protocol.errors import SignatureInvalid
from protocol.messages import CommitSubmission, RevealSubmission, SubmitKernel
from protocol.signing import verify_text
from roles.api.chain_view import ChainView
from roles.api.database import Database
from roles.api.limits import Limits
from roles.api.store_nonces import forget_nonces, use_nonce

MinerMessageT = TypeVar("MinerMessageT", CommitSubmission, RevealSubmission, SubmitKernel)

FORGET_EVERY_S: Final = 60.0
NONCE_MEMORY_S: Final = 3600.0
"""Far longer than any signed request is accepted after it was signed: clocks are set back, too."""
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
            await self._limits.check_address(request)
        message = await json_body(request, model)
        caller = await self._verified(request) if SIGNED_REQUEST_HEADER in request.headers else None
        if caller is not None:
            check_same_hotkey("miner_hotkey", message.miner_hotkey, caller.hotkey)
        if self._is_legacy(request):
            check_same_hotkey("miner_hotkey", message.miner_hotkey, verify_legacy(request.headers))
        else:
            verify_text(message.miner_hotkey, text_of(message), message.signature)
        neuron = await self._chain.neuron(message.miner_hotkey)
        if caller is not None:
            await self._use_nonce(caller)
        if limited:
            await self._limits.check_hotkey(message.miner_hotkey)
        return message, neuron

    async def validator(self, request: web.Request) -> Neuron:
        """The validator that signed the request.

        Raises SignatureInvalid (401), NotPermitted (403), ChainUnavailable (503).
        """
        caller = await self._verified(request)
        validator = await self._chain.validator(caller.hotkey, self._settings.min_validator_stake_tao)
        # Last: whoever may not call has no place in the memory of nonces.
        await self._use_nonce(caller)
        return validator

    def _is_legacy(self, request: web.Request) -> bool:
        return self._settings.legacy_auth and all(name in request.headers for name in LEGACY_HEADERS)

    async def _verified(self, request: web.Request) -> AuthenticatedCaller:
        return verify_request(
            request.headers,
            await read_body(request),
            method=request.method,
            path=request.raw_path,
            self_hotkey=self._self_hotkey,
            now_ns=int(self._clock.now().timestamp() * 1e9),
        )

    async def _use_nonce(self, caller: AuthenticatedCaller) -> None:
        now = self._clock.now()
        forgets = self._clock.monotonic() - self._forgot_at_s > FORGET_EVERY_S

        def remember(connection: Connection) -> bool:
            if forgets:
                forget_nonces(connection, now - timedelta(seconds=NONCE_MEMORY_S))
            return use_nonce(connection, caller.hotkey, caller.nonce_ns, now)

        if not await self._database.write(remember):
            raise SignatureInvalid(
                f"the request with nonce {caller.nonce_ns} was received before: sign every request anew"
            )
        if forgets:
            self._forgot_at_s = self._clock.monotonic()


def check_same_hotkey(field: str, named: str, signer: str) -> None:
    """Raise ApiProblem 403 when a message names another hotkey than the one that signed the request."""
    if named != signer:
        raise ApiProblem(403, f"the request is signed by {signer}, who cannot act for {field} {named}")
