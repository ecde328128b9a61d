"""Canonical texts of everything that is signed, and the signatures of hotkeys over them.

A signature is the hotkey's (sr25519) over the UTF-8 bytes of one line, written in hex with or without 0x.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from bittensor import sp_core
from pydantic import BaseModel

from protocol.errors import SignatureInvalid
from protocol.messages import (
    CommitSubmission,
    Comparison,
    LogitCheck,
    Receipt,
    RevealSubmission,
    SubmitKernel,
    Verdict,
)

_SIGNATURE = re.compile(r"(?:0x)?([0-9a-fA-F]{128})")
_UNSIGNED: Final = "00"

M = TypeVar("M", bound=BaseModel)


class Signer(Protocol):
    """Whoever holds a hotkey."""

    @property
    def ss58_address(self) -> str:
        """The hotkey's address."""

    def sign(self, data: bytes, /) -> bytes:
        """Sign bytes: 64 bytes of signature."""


def commit_text(message: CommitSubmission) -> str:
    """Write the text that a miner signs to commit."""
    return _line(
        "commit", message.miner_hotkey, message.commitment_hash, str(int(message.target_sequence_length))
    )


def reveal_text(message: RevealSubmission) -> str:
    """Write the text that a miner signs to reveal."""
    return _line(
        "reveal",
        message.miner_hotkey,
        str(int(message.submission_id)),
        message.commitment_salt,
        message.fork_url,
        message.commit_hash,
        repr(float(message.tokens_per_sec)),
    )


def submit_text(message: SubmitKernel) -> str:
    """Write the text that a miner signs to submit directly."""
    return _line(
        "submit",
        message.miner_hotkey,
        message.fork_url,
        message.commit_hash,
        str(int(message.target_sequence_length)),
        repr(float(message.tokens_per_sec)),
    )


def receipt_text(message: Receipt) -> str:
    """Write the text that the API signs when it takes a commitment."""
    return _line(
        "receipt",
        message.api_hotkey,
        str(int(message.submission_id)),
        message.commitment_hash,
        str(int(message.block_number)),
        message.block_hash,
    )


def verdict_text(message: Verdict) -> str:
    """Write the text that a validator signs: canonical JSON of all fields but the signature."""
    return f"quasar:verdict:{_canonical_json(message)}"


def comparison_text(message: Comparison) -> str:
    """Write the text that a validator signs: canonical JSON of all fields but the signature."""
    return f"quasar:comparison:{_canonical_json(message)}"


def logit_check_text(message: LogitCheck) -> str:
    """Write the text that a validator signs: canonical JSON of all fields but the signature."""
    return f"quasar:logit_check:{_canonical_json(message)}"


def inference_text(*, nonce: str, tokens: Sequence[int], captured_logits_sha256: str) -> str:
    """Write the text that a miner signs under an inference answer.

    `captured_logits_sha256` is the hex SHA-256 of the logits' little-endian float32 bytes, or "" without
    logits.
    """
    return (
        f"quasar:inference:{nonce}:{','.join(str(int(token)) for token in tokens)}:{captured_logits_sha256}"
    )


def sign_text(signer: Signer, text: str) -> str:
    """Sign a text: hex with 0x."""
    return "0x" + bytes(signer.sign(text.encode())).hex()


def verify_text(hotkey: str, text: str, signature: str) -> None:
    """Check a hotkey's signature over a text.

    Raises:
        SignatureInvalid: the signature is another's or of another text, is not 64 bytes of hex, or the
            hotkey is not an address.
    """
    digits = _SIGNATURE.fullmatch(signature)
    if digits is None:
        raise SignatureInvalid(
            f"signature has {len(signature)} characters and is not 64 bytes of hex; sign the request's text"
        )
    try:
        valid = sp_core.verify(text.encode(), bytes.fromhex(digits[1]), hotkey)
    except ValueError as error:
        raise SignatureInvalid(f"hotkey {hotkey[:64]!r} cannot have signed this: {error}") from error
    if not valid:
        raise SignatureInvalid(f"signature is not the one of hotkey {hotkey} over this request's text")


_TEXTS: Final[dict[type[BaseModel], tuple[str, Callable[[Any], str]]]] = {
    CommitSubmission: ("miner_hotkey", commit_text),
    RevealSubmission: ("miner_hotkey", reveal_text),
    SubmitKernel: ("miner_hotkey", submit_text),
    Receipt: ("api_hotkey", receipt_text),
    Verdict: ("validator_hotkey", verdict_text),
    Comparison: ("validator_hotkey", comparison_text),
    LogitCheck: ("validator_hotkey", logit_check_text),
}
"""For each signed message: the field that names its signer, and its text."""


def signed(signer: Signer, model: type[M], /, **fields: Any) -> M:
    """Build a message and sign it: the signer's own address goes into the field that names it.

    Raises:
        pydantic.ValidationError: a field is wrong.
        KeyError: the message is not one that is signed.
    """
    hotkey_field, text_of = _TEXTS[model]
    unsigned = model(**{hotkey_field: signer.ss58_address, **fields, "signature": _UNSIGNED})
    return unsigned.model_copy(update={"signature": sign_text(signer, text_of(unsigned))})


def signed_as_now(signer: Signer, message: M) -> M:
    """Return a message of the signer's with a signature of the text that this build writes for it.

    One that was signed by an earlier build, which knew fewer fields, is signed anew.

    Raises:
        KeyError: the message is not one that is signed.
    """
    try:
        verify_message(message)
    except SignatureInvalid:
        _, text_of = _TEXTS[type(message)]
        return message.model_copy(update={"signature": sign_text(signer, text_of(message))})
    return message


def verify_message(message: BaseModel) -> str:
    """Check a message's signature against the hotkey that the message names; return that hotkey.

    Raises:
        SignatureInvalid: it does not fit.
        KeyError: the message is not one that is signed.
    """
    hotkey_field, text_of = _TEXTS[type(message)]
    hotkey = str(getattr(message, hotkey_field))
    verify_text(hotkey, text_of(message), message.signature)  # type: ignore[attr-defined]
    return hotkey


def _line(verb: str, hotkey: str, *fields: str) -> str:
    return ":".join(("quasar", verb, hotkey, *fields))


def _canonical_json(message: BaseModel) -> str:
    # From the form on the wire, so that both ends write the same text: there NaN, say, is null.
    wire = json.loads(message.model_dump_json(exclude={"signature"}))
    return json.dumps(wire, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
