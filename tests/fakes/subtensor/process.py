"""A subtensor node as a process of its own, which can be killed and started again on the same port."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import websockets

from node.ports import free_port
from tests.fakes.subtensor.fixture import required_fixture

ROOT = Path(__file__).parents[3]


class NodeProcess:
    """Starts `python -m tests.fakes.subtensor` on a free port, which it keeps."""

    def __init__(self, state: Path) -> None:
        required_fixture()
        self._state = state
        self.port = free_port()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where the node listens."""
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the node; it listens when this returns."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.fakes.subtensor", "--state", str(self._state), "--port", str(self.port)),
            cwd=ROOT,
            stdout=PIPE,
            env=dict(os.environ),
        )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line.startswith(b"listening"), "the node did not start"

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        self._process = None

    async def set_faults(self, **faults: Any) -> None:
        """Switch faults of the running node; `drop=True` and `close=True` act at once."""
        async with websockets.connect(self.url) as connection:
            request = {"jsonrpc": "2.0", "id": 1, "method": "fake_faults", "params": [faults]}
            await connection.send(json.dumps(request))
            await connection.recv()
