"""A worker as the measurement sees it: awake for its own trials, stopped otherwise."""

import os
from collections.abc import Callable

import numpy as np

from kernels.harness.inputs import InputSets
from kernels.harness.session import Session, Trial, WorkerNotStarted
from protocol.verdicts import Status
from roles.referee.stages import Ended


def _nothing() -> None:
    return None


class Contestant:
    """Runs trials of one worker, which is stopped in between: it cannot disturb what is measured then."""

    def __init__(
        self, session: Session, *, pause: Callable[[], None] = _nothing, resume: Callable[[], None] = _nothing
    ) -> None:
        self._session = session
        self._pause = pause
        self._resume = resume
        self._rows = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))

    def wait_ready(self) -> None:
        """Wait until the submission is imported. Raises CandidateFailed, Ended: it did not come to that."""
        try:
            self._session.wait_ready()
        except WorkerNotStarted as error:
            raise Ended(Status.INFRASTRUCTURE, f"no worker could be started: {error}") from error
        self._pause()

    def run(
        self,
        sets: InputSets,
        *,
        calls: int | None = None,
        operator: str = "chunk_quasar",
        cu_seqlens: list[int] | None = None,
        parts: list[int] | None = None,
        timed: bool = False,
        processor: int | None = None,
    ) -> Trial:
        """Run one trial, of all sets or the first `calls` of them; see Session. Raises CandidateFailed."""
        try:
            return self._session.run(
                sets,
                self._rows,
                calls=calls,
                operator=operator,
                cu_seqlens=cu_seqlens,
                parts=parts,
                timed=timed,
                processor=processor,
                awaken=self._resume,
            )
        finally:
            self._pause()
