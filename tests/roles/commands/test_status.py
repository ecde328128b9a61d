"""`quasar-node status` as an operator sees it, with the API away too."""

import json
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from node.ports import free_port
from roles.cli import main
from roles.status import STATUS_FILE

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class StandingTime(datetime):
    """It is always the same moment: ages do not grow while the command runs."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        """That moment."""
        return NOW.astimezone(tz)


def write(folder: Path, *, age_s: float = 1.0, **parts: Any) -> None:
    """A status file as a node leaves it."""
    status = {
        "role": "miner",
        "hotkey": "5Miner",
        "pid": 4242,
        "height": 1234,
        "chain": {"height": 1234, "lag_s": 3, "silent_s": 1},
        "written_at": (NOW - timedelta(seconds=age_s)).isoformat(),
    }
    (folder / STATUS_FILE).write_text(json.dumps(status | parts))


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command with an API that is away; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("roles.commands.status.datetime", StandingTime)

    def run(*flags: str) -> str:
        url = f"api.url=http://127.0.0.1:{free_port()}"
        code = main(["status", "--set", f"node.data_dir={tmp_path}", "--set", url, *flags])
        assert code == 0
        return capsys.readouterr().out

    return run


def test_a_miner_shows_height_lag_and_pending_reveals(tmp_path: Path, shown: Any) -> None:
    waiting = {"submission_id": 7, "stage": "committed", "commit": "ab" * 20, "blocks_left": 42}
    drafted = {"submission_id": None, "stage": "drafted", "commit": "cd" * 20, "blocks_left": None}
    write(tmp_path, pending_reveals=[waiting, drafted])
    text = shown()
    assert "1234" in text
    assert "next block 3 s late, last answer 1 s ago" in text
    assert "submission 7 (committed): 42 blocks left, commit abababababab" in text
    assert "submission - (drafted): waits for its receipt" in text
    assert "does not answer" in text, "that the API is away does not hide the node"


def test_a_validator_shows_its_last_weights(tmp_path: Path, shown: Any) -> None:
    weights = {"ranking": [], "weights": {"5Winner": 0.6, "5Owner": 0.4}, "updated_at": 1200, "refresh_at": 9}
    write(tmp_path, role="validator", weights=weights)
    text = shown()
    assert "block 1200, 34 blocks ago" in text
    assert "5Winner: 0.6000" in text
    write(tmp_path, role="validator", weights=weights | {"updated_at": None})
    assert "never set" in shown()


def test_a_node_that_is_gone_is_told_from_one_that_runs(tmp_path: Path, shown: Any) -> None:
    write(tmp_path, age_s=90.0)
    assert "90 s ago: it does not run, or hangs" in shown()
    write(tmp_path, age_s=2.0)
    assert "hangs" not in shown()


def test_json_holds_everything(tmp_path: Path, shown: Any) -> None:
    write(tmp_path, pending_reveals=[])
    told = json.loads(shown("--json"))
    assert told["chain"] == {"height": 1234, "lag_s": 3, "silent_s": 1}
    assert told["pending_reveals"] == []
    assert "does not answer" in told["round"]["unknown"]


def test_where_no_node_ran_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--set", f"node.data_dir={tmp_path}"]) == 78
    assert "no miner or validator has run" in capsys.readouterr().err
