"""The API's receipt for a commitment: the miner's proof, if it is one."""

from protocol.errors import SignatureInvalid
from protocol.messages import CommitSubmissionAnswer
from protocol.signing import verify_message


def receipt_fault(answer: CommitSubmissionAnswer, commitment_hash: str) -> str | None:
    """Why the receipt in an answer proves nothing about a commitment; None when it does."""
    receipt = answer.receipt
    if (receipt.submission_id, receipt.commitment_hash) != (answer.submission_id, commitment_hash):
        return f"it is for submission {receipt.submission_id} and commitment {receipt.commitment_hash}"
    try:
        verify_message(receipt)
    except SignatureInvalid as error:
        return str(error)
    return None
