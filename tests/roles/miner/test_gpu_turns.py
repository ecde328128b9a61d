"""On a GPU: urgent work beside a search waits no longer than stated, and the search goes on."""

import asyncio
import time
from pathlib import Path

import pytest

from node.clock import SystemClock
from node.device_turns import URGENT_PATIENCE_S, urgent_turn
from node.devices import count_gpus
from node.workers import WorkerProcess

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(count_gpus() == 0, reason="needs a CUDA device")]
DEVICE = "cuda:0"
LENGTH = 262_144


async def test_challenge_does_not_wait_for_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clock, trials, waited_s = SystemClock(), [], []
    worker = WorkerProcess("roles.miner.tuning_worker", clock=clock, on_stderr_line=trials.append)
    params = {"device": DEVICE, "length": LENGTH, "database": str(tmp_path / "tune.sqlite"), "budget_s": 60.0}
    searching = asyncio.create_task(worker.call("tune", params, 300.0))
    try:
        async with asyncio.timeout(120):
            while len(trials) < 3:
                await asyncio.sleep(0.05)
        for _ in range(10):
            started = time.monotonic()
            async with urgent_turn(DEVICE, clock):
                waited_s.append(time.monotonic() - started)
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.3)
        before = len(trials)
        found = await searching
    finally:
        await worker.close()
    assert max(waited_s) <= URGENT_PATIENCE_S + 0.5
    assert len(trials) > before
    assert found["configuration"] is not None
