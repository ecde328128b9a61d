"""Who may use the model: real signed requests over HTTP, with a metagraph that the test holds."""

from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from node.chain.interface import Metagraph
from node.http_server import base_app
from node.metrics import Metrics
from protocol.auth import sign_request
from protocol.errors import ChainUnavailable
from roles.inference.callers import RETRY_S, STALE_METAGRAPH_S, Callers
from tests.fakes.clock import FakeClock
from tests.roles.inference.harness import key, metagraph_of

BODY = b'{"prompt": [1], "gen_len": 1}'


class Chain:
    """A metagraph, or the chain's silence."""

    def __init__(self) -> None:
        self.metagraph: Metagraph | None = metagraph_of(validator=True, miner=False, rival=False)
        self.asked = 0

    async def __call__(self) -> Metagraph:
        self.asked += 1
        if self.metagraph is None:
            raise ChainUnavailable("the chain is away")
        return self.metagraph


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Ask = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
async def ask(chain: Chain, clock: FakeClock) -> AsyncIterator[Ask]:
    callers = Callers(key("miner").ss58_address, chain, clock)

    async def ready() -> None:
        return None

    async def handle(request: web.Request) -> web.Response:
        return web.json_response({"detail": await callers.check(request)})

    app = base_app(readiness=ready, metrics=Metrics())
    app.router.add_post("/inference", handle)
    server = TestServer(app)
    await server.start_server()

    async def send(
        who: str | None, *, receiver: str = "miner", body: bytes = BODY, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        if headers is None:
            headers = {} if who is None else signature(who, clock, receiver)
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.make_url("/inference"), data=body, headers=headers) as response,
        ):
            return response.status, (await response.json())["detail"]

    yield send
    await server.close()


def signature(who: str, clock: FakeClock, receiver: str = "miner", offset_ns: int = 0) -> dict[str, str]:
    """Headers for BODY, signed at the clock's time; every call has a nonce of its own."""
    signature.count += 1  # type: ignore[attr-defined]
    nonce_ns = int(clock.now().timestamp() * 1e9) + signature.count + offset_ns  # type: ignore[attr-defined]
    return sign_request(
        key(who),
        method="POST",
        path="/inference",
        body=BODY,
        receiver=key(receiver).ss58_address,
        nonce_ns=nonce_ns,
    )


signature.count = 0  # type: ignore[attr-defined]


async def test_validator_with_permit_and_the_miner_itself_may_ask(ask: Ask) -> None:
    assert await ask("validator") == (200, key("validator").ss58_address)
    assert await ask("miner") == (200, key("miner").ss58_address)


async def test_others_may_not(ask: Ask) -> None:
    assert (await ask(None))[0] == 401
    for who in ("rival", "stranger"):
        status, sentence = await ask(who)
        assert status == 403
        assert sentence == (
            f"hotkey {key(who).ss58_address} has no validator permit: only validators may ask here"
        )


async def test_signature_binds_receiver_and_body(ask: Ask) -> None:
    assert (await ask("validator", receiver="rival"))[0] == 401
    assert (await ask("validator", body=BODY + b" "))[0] == 401


async def test_same_request_twice_is_refused(ask: Ask, clock: FakeClock) -> None:
    headers = signature("validator", clock)
    assert (await ask("validator", headers=headers))[0] == 200
    status, sentence = await ask("validator", headers=headers)
    assert status == 401
    assert "came before: sign every request anew" in sentence
    await clock.advance(60.0)
    assert (await ask("validator", headers=headers))[0] == 401, "too old by now"
    assert (await ask("validator"))[0] == 200


async def test_new_permit_is_noticed_and_strangers_do_not_flood_the_chain(
    ask: Ask, chain: Chain, clock: FakeClock
) -> None:
    for _ in range(5):
        assert (await ask("rival"))[0] == 403
    assert chain.asked == 1
    chain.metagraph = metagraph_of(validator=False, rival=True)
    assert (await ask("rival"))[0] == 403
    await clock.advance(RETRY_S + 1)
    assert (await ask("rival"))[0] == 200
    assert chain.asked == 2
    assert (await ask("validator"))[0] == 403


async def test_silent_chain_is_bridged_for_an_hour(ask: Ask, chain: Chain, clock: FakeClock) -> None:
    known, chain.metagraph = chain.metagraph, None
    status, sentence = await ask("validator")
    assert (status, sentence) == (
        503,
        "the chain does not answer, so permits cannot be checked: try again",
    )
    chain.metagraph = known
    await clock.advance(RETRY_S + 1)
    assert (await ask("validator"))[0] == 200
    chain.metagraph = None
    await clock.advance(STALE_METAGRAPH_S - 10)
    assert (await ask("validator"))[0] == 200
    await clock.advance(20)
    assert (await ask("validator"))[0] == 503


def test_signed_nonces_are_forgotten_in_time(chain: Chain, clock: FakeClock) -> None:
    callers = Callers("x", chain, clock)
    callers._use_nonce((key("a").ss58_address, 1))
    clock._elapsed_s += 3600
    callers._use_nonce((key("a").ss58_address, 2))
    assert len(callers._nonces) == len(callers._nonce_order) == 1
