"""Logs: one line per event on stderr, and no secret in any of them."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog
from pydantic import SecretStr

from node.logs import configure_logging, get_logger, redact


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process's logging as it was for the other tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    root.setLevel(level)


def logged(log_format: str = "json", level: str = "info") -> tuple[structlog.stdlib.BoundLogger, io.StringIO]:
    stream = io.StringIO()
    configure_logging(level, log_format, stream=stream)  # type: ignore[arg-type]
    return get_logger("test"), stream


def test_json_lines_hold_event_level_logger_and_time() -> None:
    log, stream = logged()
    log.info("block advanced", height=5, hotkey="5Hot")
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "block advanced",
        "level": "info",
        "logger": "test",
        "height": 5,
        "hotkey": "5Hot",
    }


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_redacted_wherever_they_are(log_format: str) -> None:
    log, stream = logged(log_format)
    log.info(
        "x",
        github_token="hunter2",
        Authorization="hunter2",
        commitment_salt="hunter2",
        headers={"X-Bittensor-Signature": "hunter2", "ok": "shown1"},
        items=[{"password": "hunter2"}, SecretStr("hunter2")],
        wallet=SecretStr("hunter2"),
        tokens_per_sec=123.5,
        max_tokens=77,
        token=None,
    )
    text = stream.getvalue()
    assert "hunter2" not in text
    for shown in ("shown1", "123.5", "77"):
        assert shown in text


def test_redaction_keeps_plain_values() -> None:
    assert redact({"a": (1, "b"), "salt": "x"}) == {"a": [1, "b"], "salt": "[redacted]"}


def test_level_applies_and_foreign_loggers_share_the_format() -> None:
    log, stream = logged(level="warning")
    log.info("not shown")
    logging.getLogger("foreign.lib").warning("from %s", "afar")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "from afar"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_traceback_is_kept_without_local_variables(log_format: str) -> None:
    log, stream = logged(log_format)
    try:
        local_secret = "hunter2" + "x"
        raise ValueError(str(len(local_secret)))
    except ValueError as error:
        log.error("failed", exc_info=error)
    text = stream.getvalue()
    assert "ValueError: 8" in text
    assert "Traceback" in text
    assert "hunter2x" not in text
    if log_format == "json":
        assert len(text.splitlines()) == 1


def test_second_configuration_replaces_the_first() -> None:
    _, first = logged()
    log, second = logged()
    log.info("x")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_unserialisable_values_do_not_break_a_line() -> None:
    log, stream = logged()
    log.info("x", value=object(), path=sys, data=b"bytes")
    assert json.loads(stream.getvalue())["data"] == "b'bytes'"


def test_process_that_configures_nothing_keeps_stdout_clean() -> None:
    code = "from node.logs import get_logger; get_logger('x').error('oops'); print('answer')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "answer\n"
    assert "oops" in done.stderr
