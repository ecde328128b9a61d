"""Who sent a request: btauth/1 headers, and the seed's replayable legacy headers.

The caller keeps the nonces: a request is fresh only if its (hotkey, nonce) was never seen before. A nonce
older than `NONCE_LIFETIME_S` is refused here, so it may be forgotten.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bittensor import http_auth, sp_core

from protocol.errors import SignatureInvalid
from protocol.signing import Signer, verify_text
from protocol.types import Hotkey

MAX_AGE_S: Final = 10.0
ALLOWED_SKEW_S: Final = 2.0
NONCE_LIFETIME_S: Final = MAX_AGE_S + ALLOWED_SKEW_S
"""How long a nonce must be remembered."""


@dataclass(frozen=True, slots=True)
class AuthenticatedCaller:
    """The hotkey behind a request, and the nonce that makes the request unique."""

    hotkey: Hotkey
    nonce_ns: int


def sign_request(
    signer: Signer,
    *,
    method: str,
    path: str,
    body: bytes,
    receiver: str | None,
    nonce_ns: int | None = None,
) -> dict[str, str]:
    """Sign one HTTP request for one receiver: the headers to send with it.

    `path` is the request target as it is sent, query included; every retry must be signed anew. `nonce_ns`
    is the time in nanoseconds since the epoch, the system's when None.
    """
    headers: dict[str, str] = http_auth.sign(
        _KeyAdapter(signer), method=method, path=path, body=body, receiver_ss58=receiver, nonce_ns=nonce_ns
    )
    return headers


def verify_request(
    headers: Mapping[str, str],
    body: bytes,
    *,
    method: str,
    path: str,
    self_hotkey: str,
    now_ns: int | None = None,
) -> AuthenticatedCaller:
    """Authenticate a request by its btauth/1 headers; the caller must then refuse a nonce it has seen.

    `now_ns` is the time in nanoseconds since the epoch, the system's when None.

    Raises:
        SignatureInvalid: a header is missing or malformed, the request is stale or signed for another
            receiver, or the signature does not fit.
    """
    try:
        caller = http_auth.verify(
            headers,
            body,
            method=method,
            path=path,
            self_hotkey_ss58=self_hotkey,
            max_age=MAX_AGE_S,
            allowed_skew=ALLOWED_SKEW_S,
            nonce_store=_PassThrough(),
            now_ns=now_ns,
        )
    except (http_auth.AuthError, ValueError) as error:
        # ValueError: header text that is not even UTF-8.
        raise SignatureInvalid(f"request signature refused: {error}") from error
    return AuthenticatedCaller(hotkey=Hotkey(caller.hotkey_ss58), nonce_ns=caller.nonce_ns)


def verify_legacy(headers: Mapping[str, str]) -> Hotkey:
    """Check the seed's headers: `Signature` is the hotkey's over its own address in `Hotkey` (replayable).

    Raises:
        SignatureInvalid: a header is missing, or the signature does not fit.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    for name in ("Hotkey", "Signature"):
        if not lowered.get(name.lower()):
            raise SignatureInvalid(f"header {name} is missing; send Hotkey and Signature")
    hotkey = lowered["hotkey"]
    verify_text(hotkey, hotkey, lowered["signature"])
    return Hotkey(hotkey)


class _PassThrough:
    """Nonce store of the SDK that accepts everything: the caller's own store decides."""

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        return True


class _KeyAdapter:
    """A signer in the shape that the SDK asks for."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.ss58_address = signer.ss58_address
        self.crypto_type = sp_core.CRYPTO_SR25519

    @property
    def public_key(self) -> bytes:
        return bytes(sp_core.decode_ss58(self.ss58_address))

    def sign(self, payload: bytes) -> bytes:
        return self._signer.sign(payload)
