"""What a submission holds of a GPU's memory, and what it could have had, by a driver's made-up figures."""

import pytest
import torch

from protocol.verdicts import Status
from roles.referee.gpu import MemoryWatch
from roles.referee.stages import Ended

TOTAL = 100 * 2**20


class Gpu:
    """In MiB: what this process's PyTorch keeps and what it lays out, the worker's, everybody else's."""

    kept = laid_out = worker = others = 0

    def free(self) -> int:
        return TOTAL - (self.kept + self.laid_out + self.worker + self.others) * 2**20


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (gpu.free(), TOTAL))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: gpu.kept * 2**20)
    return gpu


def watch(limit_mb: int | None = None) -> MemoryWatch:
    return MemoryWatch(torch.device("cuda:0"), None if limit_mb is None else limit_mb * 2**20)


def test_half_of_the_gpu_is_the_submissions(gpu: Gpu) -> None:
    gpu.kept, gpu.others = 30, 10
    watched = watch()
    gpu.kept, gpu.worker = 35, 50
    watched.look()
    assert watched.peak_bytes == 50 * 2**20
    gpu.worker = 51
    with pytest.raises(Ended, match="holds 51 MiB of the GPU, more than the 50 MiB") as caught:
        watched.look()
    assert caught.value.status is Status.OUT_OF_MEMORY


def test_what_others_take_meanwhile_is_not_the_submissions(gpu: Gpu) -> None:
    watched = watch(20)
    gpu.worker = 15
    watched.look()
    gpu.others = 30
    watched.resume()
    watched.look()
    assert watched.peak_bytes == 15 * 2**20


def test_who_could_have_had_its_share_has_itself_to_blame(gpu: Gpu) -> None:
    watched = watch(40)
    gpu.worker = 10
    watched.look()
    gpu.kept, gpu.laid_out = 40, 20
    watched.note_room()
    gpu.worker = 40
    watched.expect_room("no memory")


@pytest.mark.parametrize("who", ["kept", "laid_out", "others"])
def test_who_could_not_have_had_its_share_is_not_to_blame(gpu: Gpu, who: str) -> None:
    watched = watch(40)
    gpu.worker = 10
    watched.look()
    setattr(gpu, who, 61)
    watched.note_room()
    # What is free once the trial has ended is another thing.
    setattr(gpu, who, 0)
    with pytest.raises(
        Ended, match=r"had 39 MiB for the submission, which may hold 40 MiB .*: no memory"
    ) as caught:
        watched.expect_room("no memory")
    assert caught.value.status is Status.INFRASTRUCTURE
    assert caught.value.is_short_of_memory
