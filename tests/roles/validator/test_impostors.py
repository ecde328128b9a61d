"""Other models than the reference fail; the reference served differently passes. Many challenges each."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.logits import encode_logits
from roles.inference import tiny_model as tiny
from roles.inference.engine import Engine
from roles.inference.impostors import HONEST, IMPOSTORS
from roles.validator.logit_challenge import Challenge, draw_challenge
from roles.validator.logit_worker import judge
from roles.validator.logits import TOKEN_TOLERANCE, find_fault

CHALLENGES = 8
LIKE_THE_REFERENCE = {"int8"}
"""So near that a single challenge may miss it; miners are challenged again and again."""

Make = Callable[[Engine], Engine]


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Engine:
    return Engine.load(str(tiny_model), "cpu", dtype="float32")


@pytest.fixture(scope="module")
def rounded(reference: Engine) -> Engine:
    return reference.in_float16()


@pytest.fixture(scope="module")
def challenges(reference: Engine) -> list[Challenge]:
    source = random.Random(3)
    return [draw_challenge(reference.ordinary_tokens(), source) for _ in range(CHALLENGES)]


def faults(
    served: Engine, asked: list[Challenge], answered: list[Challenge], reference: Engine, rounded: Engine
) -> list[str | None]:
    """What a validator finds in the answers to `answered`, given for the challenges `asked`."""
    found = []
    for challenge, other in zip(asked, answered, strict=True):
        served.begin(list(other.prompt), challenge.gen_len, challenge.step)
        answer = served.advance(float("inf"))
        assert answer is not None
        assert answer.captured_logits is not None
        params = {
            "prompt": list(challenge.prompt),
            "tokens": answer.tokens,
            "captured_logits": encode_logits(answer.captured_logits.numpy()),
            "step": challenge.step,
            "tolerance": TOKEN_TOLERANCE,
        }
        found.append(find_fault(judge(reference, rounded, params), challenge))
    return found


@pytest.mark.parametrize("name", ["float32", "float16", *HONEST])
def test_honest_servers_pass_every_challenge(
    name: str, reference: Engine, rounded: Engine, challenges: list[Challenge]
) -> None:
    servers: dict[str, Make] = {"float32": lambda one: one, "float16": lambda _: rounded, **HONEST}
    assert faults(servers[name](reference), challenges, challenges, reference, rounded) == [None] * CHALLENGES


@pytest.mark.parametrize("name", IMPOSTORS)
def test_impostors_fail(name: str, reference: Engine, rounded: Engine, challenges: list[Challenge]) -> None:
    found = faults(IMPOSTORS[name](reference), challenges, challenges, reference, rounded)
    assert sum(fault is None for fault in found) <= (2 if name in LIKE_THE_REFERENCE else 0)


def test_smaller_model_fails(
    reference: Engine,
    rounded: Engine,
    challenges: list[Challenge],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny, "HIDDEN_SIZE", tiny.HIDDEN_SIZE // 2)
    tiny.write_tiny_model(tmp_path)
    smaller = Engine.load(str(tmp_path), "cpu")
    assert all(faults(smaller, challenges, challenges, reference, rounded))


def test_answers_to_other_challenges_fail(
    reference: Engine, rounded: Engine, challenges: list[Challenge]
) -> None:
    """What a miner could copy from another one: challenges are drawn for each miner."""
    others = challenges[1:] + challenges[:1]
    assert all(faults(rounded, challenges, others, reference, rounded))


def test_quantised_weights_are_told_from_rounding(
    reference: Engine, rounded: Engine, challenges: list[Challenge]
) -> None:
    found = faults(IMPOSTORS["int8"](reference), challenges, challenges, reference, rounded)
    assert any("or quantised ones" in (fault or "") for fault in found)
