"""A receipt proves something only when it is signed, and for this commitment."""

from datetime import UTC, datetime

import pytest

from protocol.messages import CommitSubmissionAnswer, Receipt
from protocol.signing import receipt_text, sign_text
from roles.miner.receipt import receipt_fault
from tests.roles.api.harness import key

HASH = "ab" * 32


def answer(*, submission_id: int = 7, is_signed: bool = True, signer: str = "api") -> CommitSubmissionAnswer:
    """What an API answers to a commitment."""
    unsigned = Receipt(
        submission_id=submission_id,
        commitment_hash=HASH,
        block_number=1,
        block_hash="0x00",
        api_hotkey=key("api").ss58_address,
        signature="",
    )
    signature = sign_text(key(signer), receipt_text(unsigned)) if is_signed else "0x00"
    return CommitSubmissionAnswer(
        submission_id=7,
        commitment_hash=HASH,
        reveal_block=101,
        expires_block=401,
        estimated_reveal_time=datetime.now(UTC),
        message="",
        receipt=unsigned.model_copy(update={"signature": signature}),
    )


def test_a_good_receipt_has_no_fault() -> None:
    assert receipt_fault(answer(), HASH) is None


@pytest.mark.parametrize(
    ("given", "commitment_hash", "words"),
    [
        (answer(), "cd" * 32, "it is for submission 7 and commitment abab"),
        (answer(submission_id=8), HASH, "it is for submission 8"),
        (answer(is_signed=False), HASH, "signature"),
        (answer(signer="rival"), HASH, "signature"),
    ],
)
def test_a_bad_receipt_is_told(given: CommitSubmissionAnswer, commitment_hash: str, words: str) -> None:
    fault = receipt_fault(given, commitment_hash)
    assert fault is not None
    assert words in fault
