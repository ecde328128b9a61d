"""`quasar-node verify --replay`: the recorded seeds again, through a real repository and the real referee."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kernels.export import export_files
from node.git_work_tree import Author, GitWorkTree
from protocol.forks import TARGET_DIR
from protocol.messages import StoredVerdict, SubmissionDetail
from protocol.rules import RULES_VERSION
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.cli import main

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOCAL = (
    "--set",
    "chain.network=local",
    "--set",
    "evaluation.trials_min=2",
    "--set",
    "evaluation.trials_max=2",
)

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes an answer of GET /submissions/<id> and returns its name."""

    def make(
        *,
        status: Status = Status.PASSED,
        evidence: dict[str, Any] | None = None,
        rules_version: int = RULES_VERSION,
        **changes: Any,
    ) -> str:
        verdict = StoredVerdict(
            validator_hotkey="hot",
            status=status,
            fault=Fault.NOBODY,
            measured_tokens_per_sec=1000.0,
            spread=0.1,
            cosine_similarity=1.0,
            max_abs_diff=0.0,
            relative_error=0.0,
            vram_mb=None,
            gpu="NVIDIA H100",
            versions={"torch": "2.13.0"},
            rules_version=rules_version,
            evidence={"seeds": [7, 8, 9]} if evidence is None else evidence,
            signature="00",
            created_at=NOW,
        )
        detail = SubmissionDetail(
            **{
                "submission_id": 3,
                "miner_hotkey": "miner",
                "state": "judged",
                "fork_url": "https://github.com/somebody/flash-linear-attention",
                "commit_hash": "ab" * 20,
                "target_sequence_length": 64,
                "league": "100k",
                "claimed_tokens_per_sec": 1.0,
                "commit_block": None,
                "reveal_block": None,
                "expires_block": None,
                "code_fixed_at": NOW,
                "created_at": NOW,
                "rank": 1,
                "logit_outcome": LogitOutcome.PASSED,
                "verdicts": [verdict],
                **changes,
            }
        )
        (tmp_path / "submission.json").write_text(detail.model_dump_json())
        return "submission.json"

    return make


def repository(path: Path) -> tuple[str, str]:
    """A fork with the shipped kernel: its URL and commit."""
    tree = GitWorkTree(path)
    tree.ensure()
    (path / TARGET_DIR).mkdir(parents=True)
    for name, text in export_files("chunk").items():
        (path / TARGET_DIR / name).write_text(text)
    commit = tree.commit_all("Kernels", Author(name="miner", email="miner@localhost"))
    return path.as_uri(), commit


@pytest.mark.usefixtures("sandbox")
def test_recorded_seeds_are_used_first(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_url, commit_hash = repository(tmp_path / "fork")
    file = write(fork_url=fork_url, commit_hash=commit_hash)
    assert main(["verify", "--replay", file, "--json", *LOCAL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recorded"]["status"] == document["replayed"]["figures"]["status"] == "passed"
    seeds = document["replayed"]["figures"]["evidence"]["seeds"]
    assert seeds[:3] == [7, 8, 9]
    # One for the lengths, nine probes, each of two lengths once before it is timed, two trials.
    assert len(set(seeds)) == len(seeds) == 14


@pytest.mark.usefixtures("sandbox")
def test_verdict_that_does_not_repeat_is_an_exit_code(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_url, commit_hash = repository(tmp_path / "fork")
    file = write(fork_url=fork_url, commit_hash=commit_hash, status=Status.WRONG_OUTPUT)
    assert main(["verify", "--replay", file, *LOCAL]) == 1
    printed = capsys.readouterr().out
    assert "wrong_output" in printed
    assert "passed" in printed
    assert "other speeds" in printed


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(("status", "code"), [(Status.PASSED, 0), (Status.WRONG_OUTPUT, 2)])
def test_verdict_of_other_rules_is_not_contradicted(
    status: Status, code: int, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_url, commit_hash = repository(tmp_path / "fork")
    other = RULES_VERSION + 1
    file = write(fork_url=fork_url, commit_hash=commit_hash, status=status, rules_version=other)
    assert main(["verify", "--replay", file, *LOCAL]) == code
    said = " ".join(capsys.readouterr().err.split())
    assert f"given by rules version {other}, and here it is {RULES_VERSION}" in said
    assert "does not contradict it" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fork_url": None}, "fork_url is null"),
        ({"fork_url": "file:///etc"}, "file://"),
        ({"commit_hash": "main"}, "commit_hash"),
        ({"verdicts": []}, "has no verdict"),
        ({"status": Status.INFRASTRUCTURE}, "has no verdict"),
        ({"evidence": {"seeds": [-1]}}, "evidence.seeds"),
        ({"evidence": {"seeds": "7"}}, "evidence.seeds"),
    ],
)
def test_what_cannot_be_replayed_is_said(
    changes: dict[str, Any], words: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--replay", write(**changes)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "not json", "\udcff"])
def test_file_that_is_something_else_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["verify", "--replay", "x.json"]) == 2
    assert "x.json: no answer of GET /submissions" in capsys.readouterr().err


def test_flags_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--replay", "absent.json"]) == 2
    assert "absent.json" in capsys.readouterr().err
    assert main(["verify", "--replay", "absent.json", "--full"]) == 2
    assert "leave out" in capsys.readouterr().err
