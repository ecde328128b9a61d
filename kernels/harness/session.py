"""The referee's side of one worker: trials whose inputs, output and clock belong to the referee."""

import gc
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kernels.harness import wire
from kernels.harness.buffers import NoRoomToMap, Offer, OutputRefused, make_ground
from kernels.harness.inputs import InputSets

GATHERED_ROWS = 1024
"""Of each output that is sampled."""


class CandidateFailed(Exception):
    """The submission lost: `kind` is build, crash, memory, timeout or tampered."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class WorkerNotStarted(Exception):
    """The worker did not get as far as the submission, which had no part in that."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Calls of the operator one after another: their outputs [B, T, H, D], and the seconds for all of them.

    On the referee's clock, the hand-over included.
    """

    outputs: list[torch.Tensor]
    seconds: float
    call_s: float | None = None
    """Seconds of one call by the worker's own account, for a worker that is the referee's own."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of what is timed."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
        self._ground = make_ground(device)
        self._deadline_s = deadline_s
        """Seconds that are left of the evaluation."""

    def close(self) -> None:
        """Let go of the worker's memory; the connection is its owner's."""
        self._ground.close()

    def wait_ready(self) -> None:
        """Wait until the submission is imported.

        Raises:
            WorkerNotStarted: nothing of it has run.
            CandidateFailed: it failed to import, hung or ended.
        """
        try:
            self._expect(wire.STARTED)
        except CandidateFailed as failure:
            raise WorkerNotStarted(str(failure)) from failure
        self._expect(wire.READY)

    def run(
        self,
        sets: InputSets,
        rows: np.random.Generator,
        *,
        calls: int | None = None,
        operator: str = "chunk_quasar",
        cu_seqlens: list[int] | None = None,
        parts: list[int] | None = None,
        timed: bool = False,
        processor: int | None = None,
        awaken: Callable[[], None] = lambda: None,
    ) -> Trial:
        """Run one trial on inputs that the worker could not have seen before the clock starts.

        The operator is called once for each of the sets, or for the first `calls` of them; with `parts`,
        borders from 0 to T, for one part after the other, from state to state. `timed` asks the
        worker how long a call took: only for one that runs nobody else's code. It is asked to run them on
        `processor`. `awaken` is called once the inputs lie ready, so that it does not show in the trial how
        long they took to draw.

        Raises:
            CandidateFailed: see `kind`. torch.cuda.OutOfMemoryError: the referee has no memory left.
        """
        self._expect_quiet("the worker spoke before it was asked")
        calls = sets.count if calls is None else calls
        count = sets.shape.count // sets.shape.dim
        chosen = rows.choice(count, size=min(GATHERED_ROWS, count), replace=False)
        go: dict[str, Any] = {
            "operator": operator,
            "nonce": secrets.token_hex(16),
            "shape": sets.shape.as_message(),
            "sets": sets.count,
            "calls": calls,
            **({} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}),
            **({} if parts is None else {"parts": parts}),
            **({"timed": True} if timed else {}),
        }
        offer = self._ground.offer(sets, calls, chosen)
        try:
            awaken()
            self._call_roll(processor)
            try:
                with _no_collection():
                    seconds, call_s = self._exchange(go, offer)
                outputs = offer.results()
            except torch.cuda.OutOfMemoryError:
                # The referee's own. What the worker holds counts next, and not the inputs with it.
                self._call_roll(processor)
                raise
            self._expect_quiet("the worker sent more than its acknowledgement")
            # By then it has let go of the inputs: what it still holds is its own.
            self._call_roll(processor)
            return Trial(outputs, seconds, call_s)
        except OutputRefused as refused:
            raise CandidateFailed("tampered", str(refused)) from refused
        except NoRoomToMap as full:
            raise CandidateFailed("memory", str(full)) from full
        finally:
            offer.close()

    def _call_roll(self, processor: int | None) -> None:
        """Wait until the worker is awake, on the right processor and done with the trial before."""
        nonce = secrets.token_hex(16)
        try:
            wire.send(self._connection, {"roll_call": nonce, "processor": processor})
        except wire.WireBroken as error:
            raise CandidateFailed("crash", "the worker ended before the trial") from error
        self._expect({"present": nonce})

    def _expect(self, message: dict[str, Any]) -> None:
        """Wait for this message and no other."""
        with self._received(0) as received:
            if received.message != message:
                raise self._failure(received.message)

    def _exchange(self, go: dict[str, Any], offer: Offer) -> tuple[float, float | None]:
        """Hand over the inputs and take rows of the output; returns the seconds in between, and of a call."""
        fields = {"nonce", *self._ground.answer_fields, *(("call_s",) if "timed" in go else ())}
        started = time.perf_counter()
        try:
            wire.send(self._connection, go, offer.descriptors)
        except wire.WireBroken as error:
            raise CandidateFailed("crash", "the worker ended before the trial") from error
        with self._received(self._ground.max_descriptors, spin_s=self._ground.spin_s) as received:
            message = received.message
            if message.get("nonce") != go["nonce"] or set(message) != fields:
                raise self._failure(message)
            offer.gather(message, received.descriptors)
            return time.perf_counter() - started, message.get("call_s")

    def _expect_quiet(self, otherwise: str) -> None:
        if wire.is_quiet(self._connection):
            return
        if wire.has_left(self._connection):
            raise CandidateFailed("crash", "the worker ended between two trials")
        raise CandidateFailed("tampered", otherwise)

    @contextmanager
    def _received(self, max_descriptors: int, *, spin_s: float = 0.0) -> Iterator[wire.Received]:
        """One message; the descriptors that came with it are closed afterwards."""
        try:
            received = wire.receive(
                self._connection,
                timeout_s=max(0.001, self._deadline_s()),
                max_descriptors=max_descriptors,
                spin_s=spin_s,
            )
        except wire.WireSilent as error:
            raise CandidateFailed("timeout", "the worker did not answer before the deadline") from error
        except wire.WireGarbled as error:
            raise CandidateFailed("tampered", f"the worker sent {error}") from error
        except wire.WireBroken as error:
            raise CandidateFailed("crash", f"the worker broke off: {error}") from error
        try:
            yield received
        finally:
            for descriptor in received.descriptors:
                os.close(descriptor)

    @staticmethod
    def _failure(message: dict[str, Any]) -> CandidateFailed:
        kind, reason = message.get("failed"), message.get("reason")
        # A worker may say anything: what cannot be hashed, too.
        if isinstance(kind, str) and kind in {"build", "crash", "memory"} and isinstance(reason, str):
            return CandidateFailed(kind, reason[:500])
        return CandidateFailed("tampered", "the worker sent a message that is not part of the protocol")
