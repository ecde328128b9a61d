"""`quasar-node sign`: sign a request body for people who call the API with curl."""

import argparse
import json
import sys
from typing import Any

from pydantic import ValidationError

from node.settings import LoadedSettings
from protocol import signing
from protocol.errors import UsageError
from protocol.messages import CommitSubmission, RevealSubmission, SubmitKernel

_BODIES = {
    "commit": (CommitSubmission, signing.commit_text),
    "reveal": (RevealSubmission, signing.reveal_text),
    "submit": (SubmitKernel, signing.submit_text),
}


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "sign",
        parents=parents,
        help="sign a request body for curl",
        description="Read a JSON body on standard input and print it signed by the wallet's hotkey.",
    )
    parser.add_argument("verb", choices=sorted(_BODIES), help="commit, reveal or submit")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the signed body.

    Raises:
        UsageError: the body is not JSON or a field is wrong.
    """
    from node.wallets import hotkey_signer, load_wallet

    settings = loaded.settings
    signer = hotkey_signer(load_wallet(settings.wallet, settings.wallet.name or settings.wallet.miner_name))
    model, text_of = _BODIES[args.verb]
    try:
        body = json.loads(sys.stdin.read())
    except ValueError as error:
        raise UsageError(f"standard input is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise UsageError(f"standard input holds a JSON {type(body).__name__}, not an object")
    body.setdefault("miner_hotkey", signer.ss58_address)
    try:
        # Validated with a placeholder: the signature is over the other fields.
        message = model.model_validate({**body, "signature": "00"})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{'.'.join(map(str, first['loc']))} = {first.get('input')!r}: {first['msg']}"
        ) from error
    body["signature"] = signing.sign_text(signer, text_of(message))  # type: ignore[arg-type]
    print(json.dumps(body))
    return 0
