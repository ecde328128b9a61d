"""The language model as a proposer: what it is told, how its answer is read, how its server may fail."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from node.clock import SystemClock
from node.settings_model import AgentSection
from protocol.errors import ConfigError
from protocol.forks import TARGET_FILES
from roles.inference.tiny_model import write_tiny_model
from roles.miner.agent_answer import MAX_FILE_CHARS, MAX_FILES, AnswerRejected, read_answer
from roles.miner.agent_proposer import AgentProposer
from roles.miner.candidate import Candidate, Unusable
from roles.miner.history import HISTORY_FILE, History, Phase
from roles.miner.language_model import Endpoint, LocalModel, ModelFailed, open_language_model
from roles.miner.target import Target
from tests.fakes.clock import FakeClock
from tests.fakes.language_model import KEY, ScriptedModel, answer_with

CLOCK = SystemClock()
TARGET = 1_000_000


def test_answer_in_the_form_gives_files_and_summary() -> None:
    text = answer_with({"chunk.py": 'x = """\n"""\n', "helper_2.py": "y = 1\n"}, "two files")
    change = read_answer(f"<think>let me ``` see</think>\n\n{text}\n")
    assert change.summary == "two files"
    assert change.files == {"chunk.py": 'x = """\n"""\n', "helper_2.py": "y = 1\n"}


_FENCED = "```python\nx = 1\n```"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "SUMMARY: is expected"),
        ("Sure! Here is the kernel:\nSUMMARY: x", "SUMMARY: is expected, not 'Sure!"),
        ("SUMMARY: x", "holds no file"),
        (f"SUMMARY: x\n{_FENCED}", "begins with FILE: is expected"),
        (f"SUMMARY: x\nFILE: ../chunk.py\n{_FENCED}", "'../chunk.py' is not allowed"),
        (f"SUMMARY: x\nFILE: /etc/passwd\n{_FENCED}", "is not allowed"),
        (f"SUMMARY: x\nFILE: setup.cfg\n{_FENCED}", "is not allowed"),
        (f"SUMMARY: x\nFILE: chunk.py\nFILE: gate.py\n{_FENCED}", "```python is expected"),
        ("SUMMARY: x\nFILE: chunk.py", "not the end"),
        ("SUMMARY: x\nFILE: chunk.py\n```python\nx = 1\n", "has no end: the answer was cut off"),
        ("SUMMARY: x\nFILE: chunk.py\n```bash\nrm -rf /\n```", "```python is expected"),
        (f"SUMMARY: x\nFILE: chunk.py\n{_FENCED}\nFILE: chunk.py\n{_FENCED}", "chunk.py is there twice"),
        (f"SUMMARY: x\nFILE: chunk.py\n{_FENCED}\nI hope this helps!", "FILE: is expected, not 'I hope"),
        ("SUMMARY: x\nFILE: chunk.py\n```python\nx = '\x00'\n```", r"the character '\x00'"),
        ("SUMMARY: x\nFILE: chunk.py\n```python\nx = '\x1b[2J'\n```", "the character"),
        ("SUMMARY: x\nFILE: chunk.py\n```python\nx = '\u202e'\n```", "the character"),
        ("SUMMARY: x\nFILE: chunk.py\n```python\nx = '\ud800'\n```", "the character"),
        (answer_with({"chunk.py": "#" * (MAX_FILE_CHARS + 1)}), "characters, more than"),
        (answer_with({f"f{n}.py": "x = 1" for n in range(MAX_FILES + 1)}), f"more than {MAX_FILES} files"),
        ("x" * 1_000_001, "1,000,001 characters"),
    ],
)
def test_anything_else_is_refused_with_a_sentence(text: str, words: str) -> None:
    with pytest.raises(AnswerRejected) as caught:
        read_answer(text)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.text(max_size=400))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for whole in (text, f"SUMMARY: {text}", f"SUMMARY: x\nFILE: chunk.py\n```python\n{text}\n```"):
        try:
            change = read_answer(whole)
        except AnswerRejected:
            continue
        assert set(change.files) == {"chunk.py"}


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    history = History(tmp_path / HISTORY_FILE, CLOCK)
    yield history
    await history.close()


def section(base_url: str, **values: Any) -> AgentSection:
    """Settings of an agent at that endpoint."""
    return AgentSection(base_url=base_url, model="m", api_key=SecretStr(KEY), timeout_s=5.0, **values)


async def measured(history: History, number: int, status: str, speed: float | None) -> None:
    """What the referee said of a candidate."""
    shape = {"batch": 1, "length": 1000, "heads": 8, "dim": 64, "dtype": "bfloat16"}
    figures: dict[str, Any] = {"gpu": "NVIDIA H200", "spread": 0.01, "evidence": {"shape": shape}}
    await history.measured(
        number,
        Phase.READY if speed else Phase.FAILED,
        status=status,
        reason=f"scripted {status}",
        tokens_per_sec=speed,
        score=speed,
        figures=figures,
    )


async def test_model_is_told_everything_and_its_answer_becomes_a_candidate(history: History) -> None:
    model = ScriptedModel([answer_with({"chunk.py": "x = 1\n"}, "one line less")])
    async with model.serve() as base_url:
        proposer = AgentProposer(Endpoint(section(base_url), CLOCK), history, Target(TARGET), CLOCK)
        start = await proposer.propose()
        assert isinstance(start, Candidate)
        assert set(TARGET_FILES) <= set(start.files)
        assert model.asked == []
        first = await history.propose(start, TARGET)
        await measured(history, first.number, "passed", 1000.0)
        wrong = Candidate("w", {"chunk.py": "y"}, "agent", parent=first.number, note="skip half the tokens")
        await measured(history, (await history.propose(wrong, TARGET)).number, "wrong_output", None)

        candidate = await proposer.propose()
        assert isinstance(candidate, Candidate)
        assert (candidate.parent, candidate.note) == (first.number, "one line less")
        assert candidate.files == {**start.files, "chunk.py": "x = 1\n"}
        await history.propose(candidate, TARGET)
        again = await proposer.propose()
        assert isinstance(again, Unusable)
        assert again.reason == "the answer gives candidate 3 again"
    asked = model.asked[0]
    assert asked["authorization"] == f"Bearer {KEY}"
    system, user = (message["content"] for message in asked["messages"])
    assert "alpha_t = (1 - exp(-beta * |k_t|^2)) / |k_t|^2" in system
    assert "from fla.utils import input_guard" in system
    assert start.files["chunk.py"] in user
    assert "1,000 tokens/s" in user
    assert "NVIDIA H200" in user
    assert "skip half the tokens: wrong_output: scripted wrong_output" in user
    assert KEY not in json.dumps(asked["messages"])


async def test_answer_that_cannot_be_used_is_kept_and_told_the_next_time(history: History) -> None:
    model = ScriptedModel(["I cannot help with that.\x1b[0m"])
    async with model.serve() as base_url:
        proposer = AgentProposer(Endpoint(section(base_url), CLOCK), history, Target(TARGET), CLOCK)
        start = await proposer.propose()
        assert isinstance(start, Candidate)
        await measured(history, (await history.propose(start, TARGET)).number, "passed", 1.0)
        refused = await proposer.propose()
        assert isinstance(refused, Unusable)
        await history.refuse(refused, TARGET)
        await proposer.propose()
    assert "the character" in model.asked[1]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            web.json_response({"error": {"message": f"Incorrect API key {KEY}"}}, status=401),
            "Incorrect API key ***",
        ),
        (web.json_response({"choices": []}), "choices"),
        (web.Response(text="<html>"), "is no"),
        (web.Response(status=302, headers={"Location": "http://elsewhere"}), "redirects are not followed"),
    ],
)
async def test_server_that_gives_no_answer_is_a_sentence_without_the_key(
    answer: web.Response, words: str
) -> None:
    model = ScriptedModel([answer])
    async with model.serve() as base_url:
        with pytest.raises(ModelFailed) as caught:
            await Endpoint(section(base_url), CLOCK).complete("s", "u")
    assert words in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_server_that_is_away_is_no_round(history: History) -> None:
    model = Endpoint(
        section(
            "http://127.0.0.1:1",
        ),
        FastClock(),
    )
    proposer = AgentProposer(model, history, Target(TARGET), CLOCK)
    start = await proposer.propose()
    assert isinstance(start, Candidate)
    await history.propose(start, TARGET)
    assert await proposer.propose() is None


class FastClock(FakeClock):
    """Sleeps that take no time."""

    async def sleep(self, seconds: float) -> None:
        self._elapsed_s += max(0.0, seconds)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"agent\.model"):
        open_language_model(AgentSection(), "cpu", CLOCK)
    with pytest.raises(ConfigError, match="plain HTTP to another machine"):
        open_language_model(section("http://10.0.0.7/v1"), "cpu", CLOCK)
    assert isinstance(open_language_model(section("https://api.example/v1"), "cpu", CLOCK), Endpoint)
    assert isinstance(open_language_model(AgentSection(model="m"), "cpu", CLOCK), LocalModel)


async def test_model_on_this_machine_answers_and_says_when_a_prompt_is_too_long(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    settings = AgentSection(model=str(tmp_path / "model"), max_tokens=5, temperature=0.0)
    text = await LocalModel(settings, "cpu", CLOCK).complete("be short", "say something")
    assert isinstance(text, str)
    with pytest.raises(ModelFailed, match=r"context of agent\.model"):
        await LocalModel(settings, "cpu", CLOCK).complete("long", "x" * 5000)
