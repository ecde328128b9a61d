"""`python -m roles.referee`: JSON in, JSON out, one sentence for a job that is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.messages import EvaluationReport
from protocol.verdicts import Fault, Status


def run_referee(document: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "roles.referee"],
        input=document,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def job_document(tmp_path: Path, **changes: object) -> str:
    job: dict[str, object] = {
        "source": {"kind": "directory", "path": str(tmp_path / "absent")},
        "target_sequence_length": 100_000,
        "sequence_length": 128,
        "profile": "cpu",
        "device": "cpu",
        "work_dir": str(tmp_path / "work"),
    }
    return json.dumps(job | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profile": "tpu"}, "profile = 'tpu'"),
        ({"claimed_tokens_per_sec": 0}, "claimed_tokens_per_sec = 0"),
        ({"bribe": 1}, "bribe = 1"),
    ],
)
def test_a_job_that_is_none(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    result = run_referee(job_document(tmp_path, **changes))
    assert result.returncode == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_is_no_json(tmp_path: Path) -> None:
    result = run_referee("judge me")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_a_report_names_its_stages(tmp_path: Path) -> None:
    result = run_referee(job_document(tmp_path))
    assert result.returncode == 0, result.stderr
    report = EvaluationReport.model_validate_json(result.stdout)
    assert report.figures.status is Status.FETCH_FAILED
    assert report.figures.fault is Fault.NOBODY
    assert set(report.figures.evidence["stage_s"]) == {"fetch"}
    assert report.figures.versions["torch"]
    assert "stage: fetch" in result.stderr
