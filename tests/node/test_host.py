"""Nodes of one machine: each has its place, and a second one is told who is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.host import nodes_on_host, registered_node
from protocol.errors import DeviceBusy

ROOT = Path(__file__).parents[2]
_NODE = """
import sys
from pathlib import Path
from node.host import registered_node
with registered_node("miner", sys.argv[1], sys.argv[2], Path(sys.argv[3])):
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock folder of this test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def start(hotkey: str, device: str, folder: Path, **env: str) -> subprocess.Popen[str]:
    """A node in a process of its own."""
    command = [sys.executable, "-c", _NODE, hotkey, device, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **env}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_second_miner_on_a_gpu_is_told_who_is_there_and_what_to_do(tmp_path: Path) -> None:
    process = start("5First", "cuda:1", tmp_path / "first")
    try:
        with (
            pytest.raises(
                DeviceBusy, match=r"device cuda:1 is taken by the miner of hotkey 5First"
            ) as caught,
            registered_node("miner", "5Second", "cuda:1", tmp_path / "second"),
        ):
            pass
        sentence = str(caught.value)
        assert f"process {process.pid}" in sentence
        assert str(tmp_path / "first") in sentence
        assert "set DEVICE or CUDA_VISIBLE_DEVICES to another" in sentence
        # What it had taken before is given back.
        with registered_node("miner", "5Second", "cuda:2", tmp_path / "second"):
            devices = {node.hotkey: node.device for node in nodes_on_host()}
        assert devices == {"5First": "cuda:1", "5Second": "cuda:2"}
    finally:
        process.kill()
        process.communicate()
    with registered_node("miner", "5Second", "cuda:1", tmp_path / "second"):
        assert [node.hotkey for node in nodes_on_host()] == ["5Second"]


def test_the_gpu_counts_and_not_what_it_is_called(tmp_path: Path) -> None:
    process = start("5First", "cuda:0", tmp_path, CUDA_VISIBLE_DEVICES="3")
    try:
        with (
            pytest.raises(DeviceBusy, match="5First"),
            registered_node("miner", "5Second", "cuda:3", tmp_path),
        ):
            pass
        with registered_node("miner", "5Second", "cuda:0", tmp_path) as node:
            assert node.physical_gpu == "0"
    finally:
        process.kill()
        process.communicate()


def test_hotkey_has_one_miner_on_a_machine_and_one_of_each_role(tmp_path: Path) -> None:
    process = start("5First", "cpu", tmp_path / "first")
    try:
        with (
            pytest.raises(DeviceBusy, match=r"hotkey 5First is taken .* set another wallet\.hotkey"),
            registered_node("miner", "5First", "cpu", tmp_path / "second"),
        ):
            pass
        with registered_node("validator", "5First", "cpu", tmp_path / "validator"):
            roles = [node.role for node in nodes_on_host()]
        assert roles == ["miner", "validator"]
    finally:
        process.kill()
        process.communicate()


def test_what_a_stranger_writes_into_the_folder_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "quasar-node-locks"
    folder.mkdir()
    (folder / "miner-x.node").write_text("1\n[]")
    (folder / "miner-y.node").write_bytes(b"\xff\n\xff{")
    assert nodes_on_host() == []


def test_miners_that_all_say_so_share_a_gpu(tmp_path: Path) -> None:
    with registered_node("miner", "5First", "cuda:1", tmp_path / "first", shares_gpu=True):
        with registered_node("miner", "5Second", "cuda:1", tmp_path / "second", shares_gpu=True):
            assert [node.hotkey for node in nodes_on_host()] == ["5First", "5Second"]
        with (
            pytest.raises(DeviceBusy, match="device cuda:1 is in use"),
            registered_node("miner", "5Third", "cuda:1", tmp_path / "third"),
        ):
            pass
