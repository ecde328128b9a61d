"""The server while its model warms up, runs out of memory, breaks, and is replaced."""

import json
import shutil
from pathlib import Path

import pytest
import structlog.testing

from roles.inference import served_model
from tests.roles.inference.faulty_worker import (
    DIES_IN_WARM_UP,
    NO_MEMORY,
    NO_MEMORY_LEFT,
    POISON,
    WARMS_UP_SLOWLY,
)
from tests.roles.inference.harness import Running, is_ready, local_settings, running, until

PROMPT = [1, 2, 3]


@pytest.fixture(autouse=True)
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process breaks when it is asked to."""
    monkeypatch.setattr(served_model, "WORKER_MODULE", "tests.roles.inference.faulty_worker")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model in a folder of its own."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


async def answers(server: Running) -> bool:
    return (await server.post(prompt=PROMPT, gen_len=2)).status == 200


async def test_answer_that_does_not_fit_is_503_and_the_same_process_goes_on(model: Path) -> None:
    async with running(local_settings(model), None) as server:
        pid = server.server.model.pid
        reply = await server.post(prompt=[NO_MEMORY, 1], gen_len=2)
        assert reply.status == 503
        assert reply.detail == "cpu has no memory left for this request: ask for fewer tokens"
        assert "Retry-After" in reply.headers
        assert await answers(server)
        assert server.server.model.pid == pid


@pytest.mark.parametrize("fault", [NO_MEMORY_LEFT, POISON])
async def test_process_that_is_beyond_repair_is_replaced(model: Path, fault: int) -> None:
    async with running(local_settings(model), None) as server:
        pid = server.server.model.pid
        assert (await server.post(prompt=[fault, 1], gen_len=2)).status == 503
        await until(lambda: is_ready(server), 240.0)
        assert await answers(server)
        assert server.server.model.pid != pid


async def test_readiness_tells_how_far_the_warm_up_is(model: Path) -> None:
    flag = model / WARMS_UP_SLOWLY
    flag.touch()
    with structlog.testing.capture_logs() as logs:
        async with running(local_settings(model), None, wait=False) as server:

            async def reason() -> str:
                shown = json.dumps((await server.get("/readyz")).body)
                return shown if "1 of 2 parts" in shown else ""

            shown = await until(reason, 240.0)
            assert "is warming up: 1 of 2 parts done, next the second part" in shown
            assert (await server.get("/health")).body["status"] == "loading"
            assert (await server.get("/livez")).status == 200
            refused = await server.post(prompt=PROMPT, gen_len=2)
            assert refused.status == 503
            assert "is warming up" in refused.detail
            flag.unlink()
            await until(lambda: is_ready(server), 240.0)
            assert await answers(server)
    bars = [line["progress"] for line in logs if "progress" in line]
    assert bars[0] == "[....................] 0/2"
    assert bars[-1] == "[##########..........] 1/2"
    assert any("no compiler" in line["event"] and line["log_level"] == "warning" for line in logs)


async def test_process_that_dies_of_its_warm_up_is_started_without(model: Path) -> None:
    (model / DIES_IN_WARM_UP).touch()
    with structlog.testing.capture_logs() as logs:
        async with running(local_settings(model), None) as server:
            assert await answers(server)
    assert any("goes on without them" in line["event"] for line in logs)


async def test_graphs_can_be_switched_off(model: Path) -> None:
    (model / DIES_IN_WARM_UP).touch()
    with structlog.testing.capture_logs() as logs:
        async with running(local_settings(model, cuda_graphs=False), None) as server:
            assert await answers(server)
    assert not any("goes on without them" in line["event"] for line in logs)
