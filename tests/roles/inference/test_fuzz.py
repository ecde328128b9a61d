"""Whatever is sent to /inference is answered with one of the promised statuses, and harms nobody after it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.roles.inference.harness import Running, local_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

VOCAB_SIZE = 512
CONTEXT_LENGTH = 1024
MAX_GEN_LEN = 64
REFUSED = {400, 413, 422}

token = st.integers(0, VOCAB_SIZE - 1)
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=20),
    st.integers(-(2**70), 2**70),
    st.lists(st.one_of(token, st.lists(token, max_size=2)), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
prompt = st.lists(token, min_size=1, max_size=40)
nonce = st.text("0123456789abcdef", min_size=32, max_size=32)


@st.composite
def valid_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A request as it should be."""
    gen_len = draw(st.integers(1, 8))
    body: dict[str, Any] = {"prompt": draw(prompt), "gen_len": gen_len}
    if draw(st.booleans()):
        body["logits_at_step"] = draw(st.integers(1, gen_len))
        body["logits_encoding"] = draw(st.sampled_from(["list", "base64"]))
    if draw(st.booleans()):
        body["nonce"] = draw(nonce)
    return body


@st.composite
def spoilt_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A request with one field that is something else, is missing, or is not asked for."""
    body = draw(valid_bodies())
    field = draw(st.sampled_from([*body, "temperature", "prompt", "gen_len"]))
    if draw(st.booleans()):
        body.pop(field, None)
    else:
        body[field] = draw(odd)
    return body


bodies = st.one_of(
    st.binary(max_size=200),
    odd.map(lambda value: json.dumps(value).encode()),
    spoilt_bodies().map(lambda body: json.dumps(body).encode()),
    st.tuples(valid_bodies(), st.integers(0, 60)).map(lambda pair: json.dumps(pair[0]).encode()[: -pair[1]]),
    st.lists(st.integers(-2, VOCAB_SIZE + 1), max_size=3000).map(
        lambda tokens: json.dumps({"prompt": tokens, "gen_len": 1}).encode()
    ),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny_model: Path) -> AsyncIterator[Running]:
    limits = {"max_gen_len": MAX_GEN_LEN, "max_body_bytes": 8192}
    async with running(local_settings(tiny_model, **limits), None) as one:
        yield one


async def post(server: Running, body: bytes) -> Any:
    return await server.post(body, headers={"Content-Type": "application/json"})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
async def test_anything_is_refused_with_a_sentence_or_answered_rightly(server: Running, body: bytes) -> None:
    pid = server.server.model.pid
    reply = await post(server, body)
    assert reply.status in REFUSED | {200}, reply
    if reply.status == 200:
        request = json.loads(body)
        assert len(reply.body["tokens"]) == request["gen_len"]
        assert all(0 <= one < VOCAB_SIZE for one in reply.body["tokens"])
    else:
        assert reply.body["detail"]
    assert server.server.model.pid == pid


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=valid_bodies())
async def test_valid_requests_are_answered_after_all_of_that(server: Running, body: dict[str, Any]) -> None:
    reply = await post(server, json.dumps(body).encode())
    assert reply.status == 200, reply
    assert len(reply.body["tokens"]) == body["gen_len"]
    assert (reply.body["captured_logits"] is None) == ("logits_at_step" not in body)


async def test_ten_megabytes_are_refused_before_they_are_read(server: Running) -> None:
    reply = await post(server, b'{"prompt": [' + b"1," * 5_000_000 + b'1], "gen_len": 1}')
    assert reply.status == 413
    assert "larger than the 8192 bytes allowed" in reply.detail
    assert (await post(server, b'{"prompt": [1], "gen_len": 1}')).status == 200
