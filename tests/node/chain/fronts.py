"""The two ways to a chain: the SDK over the state machine in this process, and over a node's websocket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import bittensor as bt

from node.chain import LocalChain
from node.chain.client import BittensorChain
from node.chain.connection import Connection
from node.chain.opening import open_chain
from node.chain.substrate import LocalSubstrate
from node.clock import SystemClock
from node.settings_model import ChainSection
from tests.fakes.subnet import NETUID, Subnet
from tests.fakes.subtensor.fixture import required_fixture
from tests.fakes.subtensor.node import SubtensorNode

PATIENCE_S = 30.0
"""Of a call that is to be answered: the first has a connection opened and the metadata read, in seconds."""
IN_PROCESS, WEBSOCKET = "in-process", "websocket"
FRONTS = (IN_PROCESS, WEBSOCKET)


@contextmanager
def limited(chain: BittensorChain, call_timeout_s: float) -> Iterator[None]:
    """Calls that are to fail do so soon, and others keep their time."""
    chain._connection.call_timeout_s, before = call_timeout_s, chain._connection.call_timeout_s
    yield
    chain._connection.call_timeout_s = before


class Front(Protocol):
    """A chain with switches for what may go wrong on the way to it."""

    chains: list[BittensorChain]

    def chain(self, *, call_timeout_s: float = PATIENCE_S) -> BittensorChain:
        """A client of this chain, closed with the front."""
        ...

    @property
    def submitted(self) -> int:
        """How many extrinsics have reached the chain."""
        ...

    def hang(self, is_hanging: bool) -> None:
        """Answer nothing any more, or answer again."""
        ...

    def lose_answers(self, count: int) -> None:
        """Carry so many extrinsics out and lose the connection instead of answering."""
        ...

    def swallow(self, count: int) -> None:
        """Report so many extrinsics as successes without carrying them out."""
        ...

    def lose_consensus(self) -> None:
        """Be a runtime that does not know SubnetEpochConsensus."""
        ...


@dataclass
class Faults:
    """What goes wrong on the way to the chain; counts what was opened, closed and submitted."""

    opened: int = 0
    closed: int = 0
    submitted: int = 0
    read: Callable[[], BaseException | None] = lambda: None
    hang: bool = False
    lose_answers: int = 0
    swallow: int = 0
    missing: frozenset[str] = frozenset()
    override: dict[str, Any] = field(default_factory=dict)


class FaultySubstrate(LocalSubstrate):
    """The local chain behind a connection that fails as the faults say."""

    def __init__(self, chain: LocalChain, faults: Faults) -> None:
        super().__init__(chain)
        self.faults = faults

    async def connect(self) -> None:
        self.faults.opened += 1

    async def close(self) -> None:
        self.faults.closed += 1

    async def block_number(self) -> int:
        if self.faults.hang:
            await asyncio.Event().wait()
        error = self.faults.read()
        if error is not None:
            raise error
        return await super().block_number()

    async def query(self, module: str, storage_function: str, *args: Any, **options: Any) -> Any:
        if storage_function in self.faults.missing:
            raise ValueError(f"storage function {module}.{storage_function} not found")
        if storage_function in self.faults.override:
            return self.faults.override[storage_function]
        return await super().query(module, storage_function, *args, **options)

    async def submit(self, call: Any, keypair: Any, **options: Any) -> Any:
        self.faults.submitted += 1
        if self.faults.swallow:
            self.faults.swallow -= 1
            return bt.ExtrinsicResult(success=True)
        result = await super().submit(call, keypair, **options)
        if self.faults.lose_answers:
            self.faults.lose_answers -= 1
            raise bt.ChainError("received 1006 (connection closed abnormally)")
        return result


class InProcess:
    """The state machine without a wire."""

    def __init__(self, subnet: Subnet) -> None:
        self._subnet = subnet
        self.faults = Faults()
        self.chains: list[BittensorChain] = []

    def chain(self, *, call_timeout_s: float = PATIENCE_S) -> BittensorChain:
        def open_client() -> Any:
            return bt.Client("local", substrate=FaultySubstrate(self._subnet.chain, self.faults))

        connection = Connection(open_client, where="'local'", call_timeout_s=call_timeout_s)
        self.chains.append(BittensorChain(connection, netuid=NETUID))
        return self.chains[-1]

    @property
    def submitted(self) -> int:
        return self.faults.submitted

    def hang(self, is_hanging: bool) -> None:
        self.faults.hang = is_hanging

    def lose_answers(self, count: int) -> None:
        self.faults.lose_answers = count

    def swallow(self, count: int) -> None:
        self.faults.swallow = count

    def lose_consensus(self) -> None:
        self.faults.missing = frozenset({"SubnetEpochConsensus"})


class Loopback:
    """A subtensor node on loopback, and the SDK's own transport to it."""

    def __init__(self, node: SubtensorNode) -> None:
        self.node = node
        self.chains: list[BittensorChain] = []

    def chain(self, *, call_timeout_s: float = PATIENCE_S) -> BittensorChain:
        section = ChainSection(network=self.node.url, netuid=NETUID, call_timeout_s=call_timeout_s)
        self.chains.append(open_chain(section, SystemClock()))
        return self.chains[-1]

    @property
    def submitted(self) -> int:
        return self.node.submitted

    def hang(self, is_hanging: bool) -> None:
        self.node.faults.is_silent = is_hanging

    def lose_answers(self, count: int) -> None:
        self.node.faults.lose_answers = count

    def swallow(self, count: int) -> None:
        self.node.faults.swallow = count

    def lose_consensus(self) -> None:
        self.node.rpc.use_runtime(has_consensus=False)


@asynccontextmanager
async def fronted(kind: str, subnet: Subnet) -> AsyncIterator[Front]:
    """A subnet's chain behind one of the fronts."""
    async with AsyncExitStack() as opened:
        front: Front
        if kind == IN_PROCESS:
            front = InProcess(subnet)
        else:
            node = SubtensorNode(subnet.chain, required_fixture())
            front = Loopback(await opened.enter_async_context(node))
        yield front
        for chain in front.chains:
            await chain.close()


@asynccontextmanager
async def chain_section(kind: str, path: Path, chain: LocalChain) -> AsyncIterator[ChainSection]:
    """Settings that lead to a local chain through one of the fronts."""
    common: dict[str, Any] = {"network": "local", "netuid": NETUID, "call_timeout_s": PATIENCE_S}
    if kind == IN_PROCESS:
        yield ChainSection(**common, local_state=path)
        return
    async with SubtensorNode(chain, required_fixture()) as node:
        yield ChainSection(**common, local_endpoint=node.url)
