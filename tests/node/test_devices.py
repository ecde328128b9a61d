"""Devices are found by what the driver leaves in /dev, without torch."""

from pathlib import Path

import pytest

from node.devices import count_gpus, gpu_file, resolve_device
from protocol.errors import ConfigError

NOTHING = {"PATH": "/nowhere"}


def make_dev(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).touch()
    return path


def test_without_a_gpu(tmp_path: Path) -> None:
    dev = make_dev(tmp_path, "nvidiactl", "nvidia-uvm", "null")
    assert resolve_device("auto", dev=dev, environ=NOTHING) == "cpu"
    assert resolve_device("cpu", dev=dev, environ=NOTHING) == "cpu"
    with pytest.raises(ConfigError, match='device "cuda" but no CUDA GPU found: set DEVICE=cpu') as caught:
        resolve_device("cuda", dev=dev, environ=NOTHING)
    assert caught.value.exit_code == 78


def test_with_gpus(tmp_path: Path) -> None:
    dev = make_dev(tmp_path, "nvidiactl", "nvidia2", "nvidia3")
    assert resolve_device("auto", dev=dev, environ=NOTHING) == "cuda:0"
    assert resolve_device("cuda", dev=dev, environ=NOTHING) == "cuda:0"
    assert resolve_device("cuda:1", dev=dev, environ=NOTHING) == "cuda:1"
    assert resolve_device("cpu", dev=dev, environ=NOTHING) == "cpu"
    with pytest.raises(
        ConfigError, match=r'device "cuda:2" but only 2 CUDA GPUs found: the last one is cuda:1'
    ):
        resolve_device("cuda:2", dev=dev, environ=NOTHING)


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("1", 1), ("0,1,2", 2), ("0,-1,1", 1)])
def test_visible_devices_count(tmp_path: Path, visible: str, count: int) -> None:
    dev = make_dev(tmp_path, "nvidia0", "nvidia1")
    assert count_gpus(dev=dev, environ={**NOTHING, "CUDA_VISIBLE_DEVICES": visible}) == count


def test_hidden_gpus_are_named(tmp_path: Path) -> None:
    dev = make_dev(tmp_path, "nvidia0")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES is ''"):
        resolve_device("cuda", dev=dev, environ={**NOTHING, "CUDA_VISIBLE_DEVICES": ""})


def test_nvidia_smi_is_asked_where_the_driver_leaves_no_nodes(tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: One (UUID: GPU-1)'\necho 'GPU 1: Two (UUID: GPU-2)'\n")
    command.chmod(0o755)
    (tmp_path / "dev").mkdir()
    assert count_gpus(dev=tmp_path / "dev", environ={"PATH": str(tmp_path)}) == 2
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert count_gpus(dev=tmp_path / "dev", environ={"PATH": str(tmp_path)}) == 0


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:100", "CUDA", "cpu:0", ""])
def test_unknown_words_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is unknown: use auto, cpu, cuda or cuda:<n>"):
        resolve_device(word)


INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 42
GPU UUID: \t GPU-{uuid}
Bus Location: \t 0000:{bus}:00.0
Device Minor: \t {minor}
"""


def test_a_gpus_file_is_found_by_its_uuid(tmp_path: Path) -> None:
    dev, proc = tmp_path / "dev", tmp_path / "proc"
    dev.mkdir()
    for bus, uuid, minor in (("0a", "aaaa", 3), ("1b", "bbbb", 0), ("2c", "cccc", 5)):
        folder = proc / f"0000:{bus}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(INFORMATION.format(uuid=uuid, bus=bus, minor=minor))
    (dev / "nvidia0").touch()
    (dev / "nvidia3").touch()
    assert gpu_file("GPU-aaaa", dev=dev, proc=proc) == dev / "nvidia3"
    assert gpu_file("GPU-bbbb", dev=dev, proc=proc) == dev / "nvidia0"
    assert gpu_file("GPU-cccc", dev=dev, proc=proc) is None
    assert gpu_file("GPU-dddd", dev=dev, proc=proc) is None
    assert gpu_file("GPU-aaaa", dev=dev, proc=tmp_path / "nothing") is None
