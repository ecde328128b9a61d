"""`quasar-node verify`: the referee's verdict on a working tree, at one length or at all."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from kernels.export import export_files
from node.settings import load_settings
from protocol.errors import UsageError
from protocol.forks import TARGET_DIR
from protocol.judging import fault_of
from protocol.messages import EvaluationReport, Figures
from protocol.verdicts import Status
from roles import evaluation
from roles.cli import main
from roles.commands import verify


class Judge:
    """Stands in for the referee: a status for each length, `passed` where none is named."""

    def __init__(self, statuses: dict[int, Status], **evidence: Any) -> None:
        self.statuses = statuses
        self.evidence = evidence
        self.asked: list[int] = []

    def __call__(self, *_: Any, **__: Any) -> "Judge":
        return self

    async def evaluate(self, _source: object, *, target_sequence_length: int, **_: Any) -> EvaluationReport:
        self.asked.append(target_sequence_length)
        status = self.statuses.get(target_sequence_length, Status.PASSED)
        is_passed = status is Status.PASSED
        return EvaluationReport(
            figures=Figures(
                status=status,
                fault=fault_of(status),
                measured_tokens_per_sec=9000.0 if is_passed else None,
                cosine_similarity=0.9999 if is_passed else None,
                max_abs_diff=0.001 if is_passed else None,
                gpu="H100",
                versions={},
                rules_version=1,
                evidence={"reason": "because [bold]", **self.evidence},
            ),
            sandbox_tier="bwrap",
        )


def verify_with(judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    monkeypatch.setattr(evaluation, "Referee", judge)
    loaded = load_settings({"node.data_dir": str(tmp_path)}, config_file=None, env={}, env_file=None)
    given = {
        "repo_path": tmp_path,
        "replay": None,
        "inference": None,
        "seq_len": None,
        "full": False,
        "json": False,
    }
    return verify.run(argparse.Namespace(**{**given, **options}), loaded)


def test_full_walks_every_league_and_says_what_to_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Judge({})
    assert verify_with(judge, tmp_path, monkeypatch, full=True) == 0
    assert judge.asked == [4096, *range(100_000, 1_000_001, 100_000)]
    printed = capsys.readouterr().out
    assert "10,000" in printed
    assert "highest weighted score: 27,000 at 1,000,000" in printed


def test_full_ends_where_memory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Judge({300_000: Status.OUT_OF_MEMORY})
    assert verify_with(judge, tmp_path, monkeypatch, full=True) == 0
    assert judge.asked[-1] == 300_000
    printed = capsys.readouterr().out
    assert "highest weighted score: 6,750 at 200,000" in printed
    assert "300,000: out_of_memory: because [bold]" in printed


@pytest.mark.parametrize("is_memory", [True, False])
def test_full_ends_where_memory_for_the_referee_does(
    is_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge({300_000: Status.INFRASTRUCTURE}, short_of_memory=is_memory)
    assert verify_with(judge, tmp_path, monkeypatch, full=True) == (0 if is_memory else 1)
    assert judge.asked[-1] == 300_000


@pytest.mark.parametrize("status", [Status.WRONG_OUTPUT, Status.OUT_OF_MEMORY])
def test_full_fails_when_the_first_length_does(
    status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge({4096: status})
    assert verify_with(judge, tmp_path, monkeypatch, full=True) == 1
    assert judge.asked == [4096]


def test_full_as_json_is_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_with(Judge({200_000: Status.CRASHED}), tmp_path, monkeypatch, full=True, json=True) == 1
    documents = json.loads(capsys.readouterr().out)
    assert [document["target_sequence_length"] for document in documents] == [4096, 100_000, 200_000]
    assert documents[-1]["figures"]["status"] == "crashed"


@pytest.mark.parametrize("options", [{"seq_len": 0}, {"seq_len": 2**30}, {"repo_path": Path("/nowhere")}])
def test_what_makes_no_sense_is_named(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (value,) = options.values()
    with pytest.raises(UsageError, match=str(value)):
        verify_with(Judge({}), tmp_path, monkeypatch, **options)


@pytest.mark.usefixtures("sandbox")
def test_the_shipped_kernel_passes_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fork" / TARGET_DIR).mkdir(parents=True)
    for name, text in export_files("chunk").items():
        (tmp_path / "fork" / TARGET_DIR / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")
    flags = ["--repo-path", "fork", "--seq-len", "64", "--json", "--set", "evaluation.trials_max=5"]
    assert main(["verify", *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["figures"]["status"] == "passed"
    assert document["target_sequence_length"] == 64
    assert document["figures"]["fingerprint"]
