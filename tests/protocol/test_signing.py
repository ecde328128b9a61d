"""Canonical texts and signatures."""

import hashlib
import json
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from bittensor.sp_core import Keypair
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

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
from protocol.signing import (
    commit_text,
    inference_text,
    logit_check_text,
    receipt_text,
    reveal_text,
    sign_text,
    signed,
    signed_as_now,
    submit_text,
    verdict_text,
    verify_message,
    verify_text,
)
from protocol.verdicts import Fault, LeadOutcome, LogitOutcome, Status

ALICE = Keypair.create_from_uri("//Alice")
BOB = Keypair.create_from_uri("//Bob")
URL = "https://github.com/you/flash-linear-attention"
COMMIT = "c" * 40

VERDICT: dict[str, Any] = {
    "status": Status.PASSED,
    "fault": Fault.NOBODY,
    "measured_tokens_per_sec": 1234.5,
    "gpu": "cpu",
    "versions": {"torch": "2.13.0"},
    "rules_version": 1,
    "evidence": {"reason": "schön", "trials": (1, 2.0), "nested": {"b": 1, "a": None}},
    "lease_id": "lease",
    "submission_id": 7,
}
COMPARISON: dict[str, Any] = {
    "outcome": LeadOutcome.CONFIRMED,
    "ratio": 1.25,
    "gpu": "cpu",
    "versions": {"torch": "2.13.0"},
    "rules_version": 1,
    "evidence": {"later": {"seeds": (1, 2)}},
    "later_submission_id": 8,
    "earlier_submission_id": 7,
}
LOGIT_CHECK: dict[str, Any] = {
    "miner_hotkey": BOB.ss58_address,
    "outcome": LogitOutcome.PASSED,
    "cosine_similarity": 0.9999,
    "checked_at": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
}


def test_the_texts_of_miners() -> None:
    commit = signed(ALICE, CommitSubmission, commitment_hash="ab" * 32, target_sequence_length=100_000)
    assert commit_text(commit) == f"quasar:commit:{ALICE.ss58_address}:{'ab' * 32}:100000"
    reveal = signed(
        ALICE,
        RevealSubmission,
        submission_id=123,
        commitment_salt="ef" * 16,
        fork_url=URL,
        commit_hash=COMMIT,
        tokens_per_sec=50_000,
    )
    assert reveal_text(reveal) == f"quasar:reveal:{ALICE.ss58_address}:123:{'ef' * 16}:{URL}:{COMMIT}:50000.0"
    submit = signed(
        ALICE,
        SubmitKernel,
        fork_url=URL,
        commit_hash=COMMIT,
        target_sequence_length=1_000_000,
        tokens_per_sec=0.1 + 0.2,
    )
    assert (
        submit_text(submit)
        == f"quasar:submit:{ALICE.ss58_address}:{URL}:{COMMIT}:1000000:0.30000000000000004"
    )
    for message in (commit, reveal, submit):
        assert verify_message(message) == ALICE.ss58_address


def test_the_text_of_a_receipt() -> None:
    receipt = signed(
        ALICE, Receipt, submission_id=5, commitment_hash="ab" * 32, block_number=99, block_hash="0x12"
    )
    assert receipt_text(receipt) == f"quasar:receipt:{ALICE.ss58_address}:5:{'ab' * 32}:99:0x12"
    assert verify_message(receipt) == ALICE.ss58_address
    with pytest.raises(SignatureInvalid):
        verify_message(receipt.model_copy(update={"block_number": 98}))


def test_a_verdict_is_signed_as_canonical_json_of_everything_else() -> None:
    verdict = signed(ALICE, Verdict, **VERDICT)
    prefix = "quasar:verdict:"
    text = verdict_text(verdict)
    assert text.startswith(prefix)
    assert text.isascii()
    parsed = json.loads(text.removeprefix(prefix))
    assert set(parsed) == set(Verdict.model_fields) - {"signature"}
    assert text == prefix + json.dumps(parsed, sort_keys=True, separators=(",", ":"))
    assert verify_message(verdict) == ALICE.ss58_address


@pytest.mark.parametrize(
    ("model", "fields"), [(Verdict, VERDICT), (Comparison, COMPARISON), (LogitCheck, LOGIT_CHECK)]
)
def test_a_signature_survives_the_wire(model: Any, fields: dict[str, Any]) -> None:
    message = signed(ALICE, model, **fields)
    received = model.model_validate_json(message.model_dump_json())
    assert verify_message(received) == ALICE.ss58_address


def test_a_changed_verdict_is_refused() -> None:
    verdict = signed(ALICE, Verdict, **VERDICT)
    changed = [
        verdict.model_copy(update={"measured_tokens_per_sec": 1234.6}),
        verdict.model_copy(update={"submission_id": 8}),
        verdict.model_copy(update={"evidence": {}}),
        verdict.model_copy(update={"validator_hotkey": BOB.ss58_address}),
    ]
    for one in changed:
        with pytest.raises(SignatureInvalid):
            verify_message(one)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_any_evidence_gives_both_ends_the_same_text(evidence: dict[str, Any]) -> None:
    verdict = Verdict(
        **{**VERDICT, "evidence": evidence}, validator_hotkey=ALICE.ss58_address, signature="00"
    )
    received = Verdict.model_validate_json(verdict.model_dump_json())
    assert verdict_text(received) == verdict_text(verdict)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_evidence_that_is_not_finite_is_null_in_the_text_of_both_ends(number: float) -> None:
    verdict = signed(ALICE, Verdict, **{**VERDICT, "evidence": {"x": number}})
    assert '"evidence":{"x":null}' in verdict_text(verdict)
    assert verify_message(Verdict.model_validate_json(verdict.model_dump_json())) == ALICE.ss58_address


def test_the_text_of_a_logit_check_names_its_moment() -> None:
    check = signed(ALICE, LogitCheck, **LOGIT_CHECK)
    assert '"checked_at":"2026-01-02T03:04:05.000678Z"' in logit_check_text(check)
    assert logit_check_text(check).startswith('quasar:logit_check:{"checked_at":')


def test_the_text_of_an_inference_answer() -> None:
    digest = hashlib.sha256(b"").hexdigest()
    text = inference_text(nonce="0f" * 16, tokens=[1, np.int64(22), 3], captured_logits_sha256=digest)
    assert text == f"quasar:inference:{'0f' * 16}:1,22,3:{digest}"
    assert inference_text(nonce="", tokens=[], captured_logits_sha256="") == "quasar:inference:::"


@given(st.text(max_size=60))
def test_signatures_verify_with_and_without_0x_in_either_case(text: str) -> None:
    signature = sign_text(ALICE, text)
    assert signature.startswith("0x")
    for form in (signature, signature[2:], signature[2:].upper()):
        verify_text(ALICE.ss58_address, text, form)
    with pytest.raises(SignatureInvalid):
        verify_text(ALICE.ss58_address, text + "x", signature)
    with pytest.raises(SignatureInvalid):
        verify_text(BOB.ss58_address, text, signature)


@pytest.mark.parametrize(
    "signature",
    ["", "0x", "zz" * 64, "ab" * 63, "ab" * 65, "0x" + "ab" * 64 + "\n", " " + "ab" * 64, "٣" * 128],
)
def test_a_malformed_signature_is_refused(signature: str) -> None:
    with pytest.raises(SignatureInvalid, match="64 bytes of hex"):
        verify_text(ALICE.ss58_address, "text", signature)


@pytest.mark.parametrize(
    "hotkey", ["", "bad", "5" * 48, ALICE.ss58_address + "1", ALICE.ss58_address[:-1], "0x" + "11" * 32]
)
def test_a_malformed_address_is_refused(hotkey: str) -> None:
    with pytest.raises(SignatureInvalid, match="hotkey"):
        verify_text(hotkey, "text", sign_text(ALICE, "text"))


def test_a_text_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(SignatureInvalid):
        verify_text(ALICE.ss58_address, "\ud800", "ab" * 64)


def test_fields_are_checked_before_anything_is_signed() -> None:
    with pytest.raises(ValidationError):
        signed(ALICE, CommitSubmission, commitment_hash="short", target_sequence_length=100_000)


def test_a_message_of_an_earlier_build_is_signed_anew() -> None:
    """That signed a text without the fields which have come since."""
    check = signed(ALICE, LogitCheck, **LOGIT_CHECK)
    assert signed_as_now(ALICE, check) is check
    before = check.model_copy(update={"signature": sign_text(ALICE, "quasar:logit_check:{}")})
    again = signed_as_now(ALICE, before)
    assert verify_message(again) == ALICE.ss58_address
    assert again == check.model_copy(update={"signature": again.signature})
