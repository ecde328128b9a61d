"""The GPU as the referee sees it from outside: how hot it is, and how much of it the submission holds."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch

from kernels.harness.inputs import Shape
from protocol.verdicts import Status
from roles.referee.stages import Ended

HOTTEST_C: Final = 83
"""Below the slowdown temperature of the data centre cards by a few degrees."""
COOLING_S: Final = 180.0
QUERY_S: Final = 20.0
CACHED_SHARE: Final = 4
"""The roofline counts memory traffic: inputs must be this many times the size of the L2 cache."""


def wait_until_cool(device: str) -> dict[str, str]:
    """Wait until the GPU is cool enough to be measured; returns what the driver says of it.

    Raises:
        Ended: infrastructure, it stays too hot.
    """
    give_up_at = time.monotonic() + COOLING_S
    while True:
        state = _state(device)
        temperature = state.get("temperature.gpu", "")
        if not temperature.isdigit() or int(temperature) <= HOTTEST_C:
            return state
        if time.monotonic() > give_up_at:
            raise Ended(Status.INFRASTRUCTURE, f"the GPU stays at {temperature} degrees Celsius")
        time.sleep(5.0)


def _state(device: str) -> dict[str, str]:
    """What nvidia-smi says; empty without it: it belongs to the driver, but not every container has it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    fields = ("temperature.gpu", "clocks.sm", "clocks.mem", "power.draw", "driver_version")
    uuid = torch.cuda.get_device_properties(device).uuid
    try:
        answer = subprocess.run(
            [program, f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=QUERY_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


class Memory(NamedTuple):
    """Bytes of a GPU: all of them, those that are free, and those that this process's PyTorch keeps."""

    total: int
    free: int
    kept: int

    @property
    def held_by_others(self) -> int:
        """What this process's PyTorch does not keep: this process's context among it."""
        return self.total - self.free - self.kept


def memory_of(device: torch.device) -> Memory:
    """Ask the driver; a CPU has none of it."""
    if device.type == "cpu":
        return Memory(0, 0, 0)
    free, total = torch.cuda.mem_get_info(device)
    return Memory(total, free, torch.cuda.memory_reserved(device))


@contextmanager
def using_memory() -> Iterator[None]:
    """Work of the referee on the GPU: when there is no memory left for that, nobody is to blame.

    Raises:
        Ended: infrastructure, there is none.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise Ended(
            Status.INFRASTRUCTURE, f"no memory left for the referee: {error}", is_short_of_memory=True
        ) from error


class MemoryWatch:
    """What a worker holds of the GPU's memory, as the driver counts it: its context and everything else.

    Counts everybody but this process, and takes off what was there before; so the yardstick's worker must not
    grow meanwhile, and the GPU must be nobody else's. On a CPU nothing is held, and nothing is wanting.
    """

    def __init__(self, device: torch.device, limit_bytes: int | None) -> None:
        self._device = device
        memory = memory_of(device)
        self._before = memory.held_by_others
        self._limit = min(memory.total, memory.total // 2 if limit_bytes is None else limit_bytes)
        self._held = 0
        self._room = memory.free
        self.peak_bytes = 0

    def resume(self) -> None:
        """Take note that others may have taken memory, or let go of it, since the last look."""
        self._before = memory_of(self._device).held_by_others - self._held

    def look(self) -> None:
        """Take note of what the worker holds now.

        Raises:
            Ended: out_of_memory, more than it may.
        """
        held = self._held = max(0, memory_of(self._device).held_by_others - self._before)
        self.peak_bytes = max(self.peak_bytes, held)
        if held > self._limit:
            raise Ended(
                Status.OUT_OF_MEMORY,
                f"the submission holds {held / 2**20:,.0f} MiB of the GPU, more than the "
                f"{self._limit / 2**20:,.0f} MiB that it may",
            )

    def note_room(self) -> None:
        """Take note of what a trial that begins leaves to the worker: what it holds, and what is free."""
        self._room = self._held + memory_of(self._device).free

    def expect_room(self, failure: str) -> None:
        """Make sure that who had no memory left in the last trial could have had what it may hold.

        Raises:
            Ended: infrastructure, it could not.
        """
        if self._room < self._limit:
            raise Ended(
                Status.INFRASTRUCTURE,
                f"the GPU had {self._room / 2**20:,.0f} MiB for the submission, which may hold "
                f"{self._limit / 2**20:,.0f} MiB ([evaluation] vram_limit_mb): {failure}",
                is_short_of_memory=True,
            )


def roofline_tokens_per_sec(shape: Shape, device: torch.device) -> float | None:
    """Return what reading q, k, v and writing o once allows at the GPU's nominal bandwidth.

    None where that is no limit: on a CPU, and for inputs that the L2 cache could hold.
    """
    if device.type == "cpu":
        return None
    from cuda.bindings import driver

    moved_bytes = 4 * shape.count * shape.torch_dtype.itemsize
    properties = torch.cuda.get_device_properties(device)
    if moved_bytes < CACHED_SHARE * properties.L2_cache_size:
        return None
    attribute = driver.CUdevice_attribute
    clock_khz, bus_bits = (
        int(driver.cuDeviceGetAttribute(name, device.index or 0)[1])
        for name in (
            attribute.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE,
            attribute.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH,
        )
    )
    # Two transfers a clock.
    bytes_per_sec = 2 * 1000 * clock_khz * bus_bits / 8
    return shape.length * shape.batch * bytes_per_sec / moved_bytes
