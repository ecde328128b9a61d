"""The wire formats refuse what the rules refuse."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.messages import (
    ApiInfo,
    CommitSubmission,
    EvaluationJob,
    GitSource,
    InferenceRequest,
    LogitCheck,
    Message,
    SubmitKernel,
)

HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
SUBMIT: dict[str, Any] = {
    "miner_hotkey": HOTKEY,
    "fork_url": "https://github.com/a/b",
    "commit_hash": "c" * 40,
    "target_sequence_length": 100_000,
    "tokens_per_sec": 5.0,
    "signature": "0x" + "ab" * 64,
}


def test_a_whole_message_passes() -> None:
    message = SubmitKernel(**SUBMIT, benchmarks={"1000": {"tokens_per_sec": 1.0}}, vram_mb=12)
    assert message.benchmarks is not None
    assert message.benchmarks["1000"].tokens_per_sec == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens_per_sec", math.nan),
        ("tokens_per_sec", math.inf),
        ("tokens_per_sec", 0),
        ("tokens_per_sec", -1),
        ("tokens_per_sec", "fast"),
        ("vram_mb", math.nan),
        ("target_sequence_length", 0),
        ("target_sequence_length", 1_048_577),
        ("target_sequence_length", 1.5),
        ("target_sequence_length", True),
        ("commit_hash", "abc"),
        ("commit_hash", "C" * 40),
        ("fork_url", ""),
        ("fork_url", "x" * 513),
        ("miner_hotkey", "alice"),
        ("miner_hotkey", "0" * 48),
        ("signature", "signed"),
        ("benchmarks", {"long": {"tokens_per_sec": 1.0}}),
        ("benchmarks", {"1": {"tokens_per_sec": -1.0}}),
        ("surprise", 1),
    ],
)
def test_wrong_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        SubmitKernel(**{**SUBMIT, field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_messages_do_not_change() -> None:
    message = SubmitKernel(**SUBMIT)
    with pytest.raises(ValidationError, match="frozen"):
        message.tokens_per_sec = 6.0  # type: ignore[misc]


def test_answers_of_a_newer_server_are_understood() -> None:
    info = ApiInfo.model_validate(
        {
            "hotkey": HOTKEY,
            "network": "test",
            "netuid": 24,
            "rules_version": 1,
            "blocks_until_reveal": 100,
            "reveal_window_blocks": 300,
            "max_target_sequence_length": 1,
            "allowed_git_hosts": [],
            "limits": {},
            "new_field": 1,
        }
    )
    assert info.netuid == 24
    with pytest.raises(ValidationError):
        Message.model_validate({"new_field": 1})


def test_a_commitment_hash_is_sha256_in_lower_case() -> None:
    for bad in ("ab" * 31, "AB" * 32, "ab" * 33):
        with pytest.raises(ValidationError):
            CommitSubmission(
                miner_hotkey=HOTKEY, commitment_hash=bad, target_sequence_length=1, signature="00"
            )


def test_a_job_knows_its_source_by_its_kind() -> None:
    job = EvaluationJob.model_validate(
        {
            "source": {"kind": "git", "fork_url": "https://github.com/a/b", "commit_hash": "c" * 40},
            "target_sequence_length": 100_000,
            "sequence_length": 256,
            "profile": "cpu",
            "device": "cpu",
            "work_dir": "/tmp/x",
        }
    )
    assert isinstance(job.source, GitSource)
    assert EvaluationJob.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    "change", [{"prompt": []}, {"prompt": ["1"]}, {"gen_len": 0}, {"nonce": "x"}, {"logits_at_step": 0}]
)
def test_inference_requests_are_checked(change: dict[str, object]) -> None:
    good = {"prompt": [1, 2], "gen_len": 3, "logits_at_step": 1, "nonce": "0f" * 16}
    assert InferenceRequest.model_validate(good).logits_encoding == "list"
    with pytest.raises(ValidationError):
        InferenceRequest.model_validate({**good, **change})


def test_figures_are_finite() -> None:
    with pytest.raises(ValidationError, match="finite"):
        LogitCheck.model_validate(
            {
                "miner_hotkey": HOTKEY,
                "validator_hotkey": HOTKEY,
                "outcome": "failed",
                "max_abs_diff": math.inf,
                "checked_at": "2026-01-01T00:00:00Z",
                "signature": "00",
            }
        )
