"""The API's receipt for a commitment: the miner's proof, if it is one."""

from protocol.errors import SignatureInvalid
from protocol.messages import Receipt
from protocol.signing import verify_message


def receipt_fault(receipt: Receipt, commitment_hash: str) -> str | None:
    """Why a receipt proves nothing about a commitment; None when it does."""
    if receipt.commitment_hash != commitment_hash:
        return f"it is for commitment {receipt.commitment_hash}"
    try:
        verify_message(receipt)
    except SignatureInvalid as error:
        return str(error)
    return None
