"""Fixtures: chains whose blocks hardly move by themselves, so that tests call `advance`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from node.chain import LocalChain
from node.chain.client import BittensorChain
from node.wallets import create_wallet
from tests.fakes.subnet import NETUID, MakeSubnet, Subnet, registration
from tests.node.chain.fronts import FRONTS, Front, fronted

PutFront = Callable[[Subnet], Awaitable[Front]]


@pytest.fixture(scope="session")
def wallets(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    root = tmp_path_factory.mktemp("wallets")
    return [create_wallet(root, f"neuron{index}") for index in range(5)]


@pytest.fixture
def make_subnet(tmp_path: Path, wallets: list[Any]) -> Iterator[MakeSubnet]:
    made: list[LocalChain] = []

    def make(*, block_time_s: float = 3600.0, **options: Any) -> Subnet:
        defaults: dict[str, Any] = {"owner_hotkey": None, "weights_rate_limit": 10}
        chain = LocalChain.create(
            tmp_path / f"chain{len(made)}.sqlite",
            block_time_s=block_time_s,
            netuid=NETUID,
            neurons=[
                registration(wallets[0], 2000.0, validator_permit=True),
                *(registration(wallet) for wallet in wallets[1:4]),
            ],
            **(defaults | options),
        )
        made.append(chain)
        return Subnet(chain.path, wallets, chain)

    yield make
    for chain in made:
        chain.close()


@pytest.fixture
def subnet(make_subnet: MakeSubnet) -> Subnet:
    return make_subnet()


@pytest.fixture(params=FRONTS)
def front_kind(request: pytest.FixtureRequest) -> str:
    """Tests that use it run over both fronts."""
    return str(request.param)


@pytest.fixture
async def put_front(front_kind: str) -> AsyncIterator[PutFront]:
    """Puts a front before a subnet's chain; each test runs over every kind of front in turn."""
    async with AsyncExitStack() as opened:

        async def put(subnet: Subnet) -> Front:
            return await opened.enter_async_context(fronted(front_kind, subnet))

        yield put


@pytest.fixture
async def front(put_front: PutFront, subnet: Subnet) -> Front:
    """The subnet's chain behind each front in turn."""
    return await put_front(subnet)


@pytest.fixture
def chain(front: Front) -> BittensorChain:
    """A client of the subnet's chain over each front in turn."""
    return front.chain()


@pytest.fixture(autouse=True)
def private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the SDK caches stays in the test's folder; the environment is restored afterwards."""
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))
