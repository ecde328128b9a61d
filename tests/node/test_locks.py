"""Locks between real processes."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from node.locks import FileLock, device_lock, lock_folder
from protocol.errors import ConfigError, DeviceBusy

HOLDER = """
import sys, time
from pathlib import Path
from node.locks import FileLock
FileLock(Path(sys.argv[1]), "thing").acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "a.lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_process_is_told_who_holds_the_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(DeviceBusy, match=f"journal of 5Hot is in use by process {holder.pid}: stop it"):
        FileLock(tmp_path / "a.lock", "journal of 5Hot").acquire()


def test_timeout_is_waited_for_and_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(DeviceBusy, match=r"waited 0.2 s"):
        FileLock(tmp_path / "a.lock", "thing", timeout_s=0.2).acquire()


def test_kernel_frees_the_lock_of_a_killed_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    with FileLock(tmp_path / "a.lock", "thing", timeout_s=60) as lock:
        assert lock.is_held
        assert (tmp_path / "a.lock").read_text() == f"{os.getpid()}\n"
    assert not lock.is_held


def test_lock_is_reusable_but_not_twice_at_once(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "sub" / "a.lock", "thing")
    for _ in range(2):
        with lock:
            with pytest.raises(DeviceBusy, match="by this process already"):
                lock.acquire()
            with pytest.raises(DeviceBusy, match=f"process {os.getpid()}"):
                FileLock(tmp_path / "sub" / "a.lock", "thing").acquire()
    lock.release()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep me")
    (tmp_path / "a.lock").symlink_to(target)
    with pytest.raises(ConfigError, match="cannot be opened"):
        FileLock(tmp_path / "a.lock", "thing").acquire()
    assert target.read_text() == "keep me"


def test_device_lock_counts_physical_gpus(tmp_path: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "3,1"}
    with (
        device_lock("cuda", timeout_s=0, env=env),
        device_lock("cuda:1", timeout_s=0, env=env),
        device_lock("cpu", timeout_s=0, env=env),
    ):
        with pytest.raises(DeviceBusy, match="device cuda:0 is in use"):
            device_lock("cuda:0", timeout_s=0, env=env).acquire()
        with pytest.raises(DeviceBusy):
            device_lock("cuda:3", timeout_s=0, env={"XDG_RUNTIME_DIR": str(tmp_path)}).acquire()
        with device_lock("cuda:0", timeout_s=0, env={"XDG_RUNTIME_DIR": str(tmp_path)}) as other:
            assert other.is_held


def test_shared_folder_is_sticky_and_not_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = lock_folder({})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert lock_folder({"XDG_RUNTIME_DIR": str(tmp_path / "absent")}) == folder
    with FileLock(folder / "x.lock", "thing"):
        assert stat.S_IMODE((folder / "x.lock").stat().st_mode) == 0o666
    (folder / "x.lock").unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="not a file or a link"):
        lock_folder({})
