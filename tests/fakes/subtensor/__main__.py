"""`python -m tests.fakes.subtensor --state FILE --port PORT`: a node as a process of its own.

It ends with its parent. The faults of a running node are set with the JSON-RPC method `fake_faults`.
"""

import argparse
import asyncio
from pathlib import Path

from node.chain.local import LocalChain
from node.worker_main import die_with_parent
from tests.fakes.subtensor.fixture import fetch
from tests.fakes.subtensor.node import SubtensorNode


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="tests.fakes.subtensor")
    parser.add_argument("--state", type=Path, required=True, help="file of the local chain")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    async with SubtensorNode(LocalChain.open(arguments.state), fetch(), port=arguments.port) as node:
        print(f"listening on {node.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(main())
