"""Members of a devnet are real processes: noticed when they end, and ended when the devnet does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import DevnetFailed
from roles.devnet.layout import Layout, Scale, prepare
from roles.devnet.processes import Processes, log_tail
from tests.processes import is_gone
from tests.waiting import until

ORPHAN_MAKER = """
import asyncio, pathlib, sys
from roles.devnet.layout import Scale, prepare
from roles.devnet.processes import Processes

async def main():
    layout = prepare(pathlib.Path(sys.argv[1]), scale=Scale.short(), device="cpu")
    process = await Processes().start(layout.api)
    while "listening" not in layout.api.log_file.read_text():
        await asyncio.sleep(0.05)
    print(process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return prepare(tmp_path / "devnet", scale=Scale.short(), device="cpu")


async def test_member_that_ended_is_named_with_its_last_words(layout: Layout) -> None:
    layout.api.config_file.write_text("[api]\nporrt = 1\n")
    processes = Processes()
    process = await processes.start(layout.api)
    assert await process.wait() == 78
    with pytest.raises(DevnetFailed, match=r"api ended with exit code 78(?s:.*)porrt"):
        processes.check()
    await processes.stop()


async def test_secrets_of_the_user_do_not_reach_members(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_very_secret")
    monkeypatch.setenv("NETUID", "439")
    processes = Processes()
    process = await processes.start(layout.api)
    try:
        environ = Path(f"/proc/{process.pid}/environ").read_text()
    finally:
        await processes.stop()
    assert "ghp_very_secret" not in environ
    assert "NETUID" not in environ
    assert process.returncode is not None


def test_member_does_not_outlive_a_devnet_that_was_killed(tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_MAKER, str(tmp_path / "devnet")], stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout is not None
    with maker.stdout:
        pid = int(maker.stdout.readline())
    maker.send_signal(signal.SIGKILL)
    maker.wait(60)

    until(lambda: is_gone(pid), lambda: "the member is still there")


def test_log_that_is_not_there_yet(layout: Layout) -> None:
    assert "nothing" in log_tail(layout.fast)
    layout.fast.log_file.write_text("".join(f"line {number}\n" for number in range(100)))
    assert log_tail(layout.fast).splitlines()[0] == "line 70"
    assert os.linesep not in log_tail(layout.fast).splitlines()[-1]
