"""The referee's side of one worker: trials whose inputs, output and clock belong to the referee."""

import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kernels.harness import wire
from kernels.harness.buffers import Buffers, make_buffers
from kernels.harness.inputs import Inputs, Shape

GATHERED_ROWS = 4096


class CandidateFailed(Exception):
    """The submission lost: `kind` is build, crash, memory, timeout or tampered."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the operator: its output [B, T, H, D] in float32, and the seconds on the referee's clock."""

    output: torch.Tensor
    seconds: float


class Session:
    """Talks to one worker over `connection`; never believes what it says, only what is in the output."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        deadline_s: Callable[[], float],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    ) -> None:
        self._connection = connection
        self._device = device
        self._deadline_s = deadline_s
        """Seconds that are left of the evaluation."""

    def wait_ready(self) -> None:
        """Wait until the submission is imported.

        Raises:
            CandidateFailed: it failed to import, hung or ended.
        """
        message = self._receive()
        if message != {"ready": True}:
            raise self._failure(message)

    def run(
        self,
        inputs: Inputs,
        shape: Shape,
        rows: np.random.Generator,
        *,
        operator: str = "chunk_quasar",
        cu_seqlens: list[int] | None = None,
    ) -> Trial:
        """Run one trial on inputs that the worker could not have seen before the clock starts.

        Raises:
            CandidateFailed: see `kind`.
        """
        self._expect_quiet("the worker spoke before it was asked")
        buffers = make_buffers(inputs, shape, self._device)
        try:
            return self._exchange(buffers, shape, rows, operator=operator, cu_seqlens=cu_seqlens)
        finally:
            buffers.close()

    def _exchange(
        self,
        buffers: Buffers,
        shape: Shape,
        rows: np.random.Generator,
        *,
        operator: str,
        cu_seqlens: list[int] | None,
    ) -> Trial:
        nonce = secrets.token_hex(16)
        count = shape.count // shape.dim
        chosen = rows.choice(count, size=min(GATHERED_ROWS, count), replace=False)
        go: dict[str, Any] = {"operator": operator, "nonce": nonce, "shape": shape.as_message()}
        if cu_seqlens is not None:
            go["cu_seqlens"] = cu_seqlens
        started = time.perf_counter()
        try:
            wire.send(self._connection, go, buffers.descriptors)
        except wire.WireBroken as error:
            raise CandidateFailed("crash", "the worker ended before the trial") from error
        message = self._receive()
        gathered = buffers.gather(chosen)
        seconds = time.perf_counter() - started
        if message.get("nonce") != nonce or set(message) != {"nonce"}:
            raise self._failure(message)
        return Trial(self._verified(buffers, chosen, gathered), seconds)

    def _verified(self, buffers: Buffers, chosen: np.ndarray, gathered: torch.Tensor) -> torch.Tensor:
        """Take the whole output and make sure that it did not change after the acknowledgement."""
        whole = buffers.whole()
        if not torch.equal(whole[torch.from_numpy(chosen).to(whole.device)].cpu(), gathered):
            raise CandidateFailed("tampered", "the output changed after the worker said that it was done")
        self._expect_quiet("the worker sent more than its acknowledgement")
        unwritten = int((whole == buffers.poison()).sum())
        if unwritten:
            # The worker writes all of o before it says so: this one did not wait for it.
            raise CandidateFailed(
                "tampered",
                f"{unwritten:,} of {whole.numel():,} numbers of o were not written when it said done",
            )
        return buffers.values(whole)

    def _expect_quiet(self, otherwise: str) -> None:
        if wire.is_quiet(self._connection):
            return
        if wire.has_left(self._connection):
            raise CandidateFailed("crash", "the worker ended between two trials")
        raise CandidateFailed("tampered", otherwise)

    def _receive(self) -> dict[str, Any]:
        try:
            received = wire.receive(self._connection, timeout_s=max(0.001, self._deadline_s()))
        except wire.WireSilent as error:
            raise CandidateFailed("timeout", "the worker did not answer before the deadline") from error
        except wire.WireGarbled as error:
            raise CandidateFailed("tampered", f"the worker sent {error}") from error
        except wire.WireBroken as error:
            raise CandidateFailed("crash", f"the worker broke off: {error}") from error
        for descriptor in received.descriptors:
            os.close(descriptor)
        return received.message

    @staticmethod
    def _failure(message: dict[str, Any]) -> CandidateFailed:
        kind, reason = message.get("failed"), message.get("reason")
        if kind in {"build", "crash", "memory"} and isinstance(reason, str):
            return CandidateFailed(kind, reason[:500])
        return CandidateFailed("tampered", "the worker sent a message that is not part of the protocol")
