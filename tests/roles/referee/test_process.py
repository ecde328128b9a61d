"""`python -m roles.referee`: JSON in, JSON out, one sentence for a job that is none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from node.settings_model import ChainSection, EvaluationSection, NodeSection, Settings, ValidatorSection
from protocol.errors import ConfigError, WorkerFailed
from protocol.messages import DirectorySource, EvaluationReport
from protocol.verdicts import Fault, LeadOutcome, Status
from roles import evaluation, places
from roles.evaluation import Referee, git_source


def run_referee(document: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "roles.referee", *options],
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


def test_a_comparison_that_is_none(tmp_path: Path) -> None:
    both = {"earlier": json.loads(job_document(tmp_path)), "later": json.loads(job_document(tmp_path))}
    result = run_referee(json.dumps({**both, "bribe": 1}), "--compare")
    assert result.returncode == 2
    assert "bribe = 1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


async def test_a_comparison_asked_for_as_a_validator_does(tmp_path: Path) -> None:
    settings = Settings(
        node=NodeSection(data_dir=tmp_path / "data", device="cpu"), chain=ChainSection(network="local")
    )
    source = git_source(settings, fork_url=f"file://{tmp_path}/absent", commit_hash="a" * 40)
    stages: list[str] = []
    referee = Referee(settings, settings.node.data_dir, on_stage=stages.append)
    report = await referee.compare(earlier=(source, 100_000), later=(source, 1_000_000))
    assert report.figures.outcome is LeadOutcome.INFRASTRUCTURE
    assert "the earlier submission: fetch_failed" in report.figures.evidence["reason"]
    assert report.figures.versions["torch"]
    assert stages == ["fetch"]


@pytest.mark.parametrize(
    ("network", "is_unsafe", "do_verdicts_score", "expected"),
    [
        ("test", False, True, "to_score"),
        ("test", True, True, "to_score"),
        ("test", False, False, "any"),
        ("test", True, False, "any"),
        ("local", False, True, "any"),
        ("local", True, True, "none"),
    ],
)
async def test_the_isolation_that_is_asked_for(
    network: str,
    is_unsafe: bool,
    do_verdicts_score: bool,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def judge_nothing(_argv: list[str], document: str, **_options: object) -> str:
        asked.append(json.loads(document)["isolation"])
        raise WorkerFailed("not today")

    monkeypatch.setattr(evaluation, "run_json_process", judge_nothing)
    settings = Settings(
        node=NodeSection(data_dir=tmp_path / "data", device="cpu"),
        chain=ChainSection(network=network),
        validator=ValidatorSection(unsafe_no_sandbox=is_unsafe),
    )
    referee = Referee(settings, settings.node.data_dir, do_verdicts_score=do_verdicts_score)
    report = await referee.evaluate(
        DirectorySource(path=str(tmp_path)), target_sequence_length=100_000, claimed_tokens_per_sec=None
    )
    assert report.figures.status is Status.INFRASTRUCTURE
    assert asked == [expected]


@pytest.mark.parametrize(("device", "profile"), [("cpu", "gpu"), ("cuda:0", "cpu")])
def test_a_profile_of_another_device_is_refused(
    device: str, profile: Literal["cpu", "gpu"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "resolve_device", lambda chosen: chosen)
    settings = Settings(
        node=NodeSection(data_dir=tmp_path / "data", device=device),
        evaluation=EvaluationSection(profile=profile),
    )
    said = rf'^\[evaluation\] profile = "{profile}", but the device is {device}: '
    with pytest.raises(ConfigError, match=said):
        Referee(settings, tmp_path)
    own: Literal["cpu", "gpu"] = "cpu" if device == "cpu" else "gpu"
    fitting = settings.model_copy(update={"evaluation": EvaluationSection(profile=own)})
    assert Referee(fitting, tmp_path).profile == own
