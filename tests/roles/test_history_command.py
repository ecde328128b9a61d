"""`quasar-node history` and the view of the machine: what was tried, what changed, who runs where."""

import asyncio
import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from node.clock import SystemClock
from node.host import registered_node
from roles.commands.history import diff, draw
from roles.commands.host_view import host_table, host_view
from roles.miner.candidate import Candidate, Unusable
from roles.miner.history import HISTORY_FILE, History, Phase

ROOT = Path(__file__).parents[2]


async def fill(path: Path) -> None:
    """Three candidates, one made from the other, and an answer that could not be used."""
    history = History(path, SystemClock())
    first = await history.propose(Candidate("start", {"chunk.py": "x = 1\ny = 1\n"}, "agent"), 1_000_000)
    await measure(history, first.number, 100.0)
    change = Candidate(
        "[red]double", {"chunk.py": "x = 2\ny = 1\n"}, "agent", parent=first.number, note="twice"
    )
    second = await history.propose(change, 1_000_000)
    await measure(history, second.number, 200.0)
    offer = {"commit_hash": "ab" * 20, "claim_tokens_per_sec": 190.0}
    await history.offered(second.number, offer, "submitted: nothing of this miner is live")
    await history.refuse(
        Unusable("answer", "no file\x1b[2J", "agent", parent=second.number, note="hello"), 1_000_000
    )
    await history.close()


async def measure(history: History, number: int, speed: float) -> None:
    await history.measured(
        number,
        Phase.READY,
        status="passed",
        reason="as it should be",
        tokens_per_sec=speed,
        score=3 * speed,
        figures={"gpu": "cpu"},
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path / HISTORY_FILE))
    return tmp_path


def run(*arguments: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """`quasar-node history ...`."""
    return subprocess.run(
        [sys.executable, "-m", "roles", "--data-dir", str(data_dir), "history", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_list_shows_every_candidate_with_its_lineage(data_dir: Path) -> None:
    result = run(data_dir=data_dir)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if "1,000,000" in line]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert "[red]double" in rows[1]
    assert "submitted: nothing of this miner is live" in rows[1]
    assert "\x1b[2J" not in result.stdout
    entries = json.loads(run("--json", "--limit", "2", data_dir=data_dir).stdout)
    assert [(entry["number"], entry["parent"], entry["phase"]) for entry in entries] == [
        (2, 1, "offered"),
        (3, 2, "refused"),
    ]


def test_show_prints_diff_verdict_decision_and_best_over_time(data_dir: Path, tmp_path: Path) -> None:
    picture = tmp_path / "best.png"
    result = run("show", "2", "--plot", str(picture), data_dir=data_dir)
    assert result.returncode == 0, result.stderr
    for words in ("-x = 1", "+x = 2", " y = 1", "passed", "submitted: nothing", "claim", "made from"):
        assert words in result.stdout
    assert "candidate 1: 300" in result.stdout
    assert "candidate 2: 600" in result.stdout
    assert "#" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = json.loads(run("show", "2", "--json", data_dir=data_dir).stdout)
    assert document["lineage"] == [1]
    assert document["diff"].startswith("--- a/chunk.py\n+++ b/chunk.py\n")
    assert [point["candidate"] for point in document["best_over_time"]] == [1, 2]
    assert document["files"] == {"chunk.py": "x = 2\ny = 1\n"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [(("show", "9"), 2, "no such candidate"), (("--limit", "0"), 2, "--limit 0")],
)
def test_what_is_not_there_is_a_sentence(
    arguments: tuple[str, ...], code: int, words: str, data_dir: Path
) -> None:
    result = run(*arguments, data_dir=data_dir)
    assert result.returncode == code
    assert words in result.stderr


def test_folder_without_a_miner(tmp_path: Path) -> None:
    result = run(data_dir=tmp_path)
    assert result.returncode == 78
    assert "no miner has run" in result.stderr


def test_diff_names_files_that_came_and_went() -> None:
    text = diff({"old.py": "a\n"}, {"new.py": "b\n"})
    assert "+++ b/new.py" in text
    assert "-a" in text.splitlines()


def test_picture_rises() -> None:
    lines = draw([1.0, 2.0, 4.0], height=4).splitlines()
    assert [line.count("#") for line in lines] == [1, 1, 2, 3]


def test_host_view_is_one_row_for_each_gpu_and_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "0, GPU-aa, NVIDIA H200, 41, 97, 70321, 143771"\n'
        'echo "1, GPU-bb, NVIDIA H200, 30, [N/A], 4, 143771"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "one").mkdir()
    status: dict[str, Any] = {"height": 12, "optimiser": {"doing": "measuring", "name": "chunk"}}
    (tmp_path / "one/status.json").write_text(json.dumps(status))
    with (
        registered_node("miner", "5One", "cuda:0", tmp_path / "one"),
        registered_node("miner", "5Two", "cpu", tmp_path / "two"),
    ):
        view = host_view()
    text = StringIO()
    Console(file=text, width=160).print(host_table(view))
    rows = text.getvalue().splitlines()
    assert [row for row in rows if "41 C" in row and "97 %" in row and "70,321 / 143,771 MiB" in row]
    assert [row for row in rows if "5One" in row and "measuring chunk; block 12" in row and "41 C" in row]
    assert [row for row in rows if row.split()[:1] == ["1"] and row.rstrip().endswith("MiB")]
    assert [row for row in rows if row.split()[:1] == ["cpu"] and "5Two" in row]
