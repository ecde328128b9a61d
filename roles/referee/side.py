"""One of two submissions that run in turn: its worker, its time, its memory, and what it lost by."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

import torch

from kernels.harness.session import CandidateFailed
from node.sandbox_spec import SandboxTier
from protocol.judging import Measurements, judge
from protocol.leagues import weighted_score
from protocol.messages import EvaluationJob
from protocol.verdicts import Status
from roles.referee.drawing import Drawing, Drawn, timed_shape
from roles.referee.evaluation import STATUS_OF
from roles.referee.gpu import MemoryWatch, memory_of, roofline_tokens_per_sec
from roles.referee.measuring import Measuring
from roles.referee.stages import Countdown, Ended
from roles.referee.worker import Worker, running_worker
from roles.referee.yardstick import Yardstick

MEMORY_SHARE: Final = 4
"""Each of the two may hold this part of the GPU, so that neither takes it from the other or the referee."""


class SideLost(Exception):
    """One of the two does not do what its verdict says that it does."""

    def __init__(self, side: "Side", status: Status, reason: str) -> None:
        super().__init__(f"the {side.name} submission: {status}: {reason}")
        self.side = side


class Side:
    """One of the two: its time runs while its worker is awake, and its memory counts in its own turns."""

    def __init__(self, name: str, job: EvaluationJob) -> None:
        self.name = name
        self.job = job
        self.sources: dict[str, str] = {}
        self.drawing: Drawing
        self.worker: Worker
        self.measuring: Measuring
        self.found: Measurements | None = None
        self._watch: MemoryWatch
        self._opened = ExitStack()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """What fails meanwhile is this one's failure, unless the referee says that it is its own."""
        try:
            yield
        except CandidateFailed as failure:
            explained = self.worker.explained(failure)
            if isinstance(explained, Ended):
                raise explained from failure
            if failure.kind == "memory":
                self._watch.expect_room(str(failure))
            raise SideLost(self, STATUS_OF[explained.kind], str(explained)) from failure
        except Ended as end:
            if end.status is Status.INFRASTRUCTURE:
                raise
            raise SideLost(self, end.status, str(end)) from end

    def start(
        self,
        tier: SandboxTier,
        drawing: Drawing,
        yardstick: Yardstick | None,
        give_way: Callable[[], None],
        opened: ExitStack,
    ) -> None:
        """Start its worker, which `opened` ends, or `end` before that."""
        self.drawing = drawing
        device = torch.device(self.job.device)
        share = memory_of(device).total // MEMORY_SHARE
        self._watch = MemoryWatch(device, min(share, self.job.vram_limit_bytes or share))

        def after_trial() -> None:
            self._watch.look()
            give_way()

        left_s = Countdown(self.job.deadline_s)

        def on_resume() -> None:
            self._watch.note_room()
            left_s.go()

        opened.enter_context(self._opened)
        self.worker = self._opened.enter_context(
            running_worker(self.sources, self.job, tier, left_s, on_pause=left_s.stop, on_resume=on_resume)
        )
        contestant = self.worker.contestant
        self.measuring = Measuring(self.job, contestant, drawing, yardstick, after_trial=after_trial)

    def wait_ready(self) -> None:
        """Wait until it is imported. Raises CandidateFailed, Ended."""
        self.worker.contestant.wait_ready()
        self._watch.look()

    def at_end(self, callback: Callable[["Side"], None]) -> None:
        """Call back when its worker ends, while what it printed is still there."""
        self._opened.callback(callback, self)

    def end(self) -> None:
        """End its worker."""
        self._opened.close()

    def resume(self) -> None:
        """Look at the GPU's memory as it is before its turn."""
        self._watch.resume()

    def at_its_length(self, number: int, drawn: Drawn) -> Drawn:
        """What was drawn for a round, at this one's own length."""
        length = self.drawing.lengths[number % len(self.drawing.lengths)]
        return replace(drawn, shape=timed_shape(self.job, length))

    def judge(self) -> float:
        """Return its weighted score. Raises Ended: it would not have passed with these figures."""
        found = self.measuring.measurements()
        roofline = roofline_tokens_per_sec(
            timed_shape(self.job, self.job.sequence_length), torch.device(self.job.device)
        )
        status = judge(found, None, roofline_tokens_per_sec=roofline)
        if status is not Status.PASSED:
            raise Ended(
                status, f"{found.tokens_per_sec:,.1f} tok/s, relative error {found.relative_error:.1e}"
            )
        self.found = found
        return weighted_score(found.tokens_per_sec, self.job.target_sequence_length)

    def evidence(self) -> dict[str, Any]:
        """What a comparison shows of it."""
        return {
            "target_sequence_length": self.job.target_sequence_length,
            "seeds": self.drawing.seeds,
            "lengths": self.drawing.lengths,
            **self.measuring.evidence(),
            "log_tail": self.worker.log_tail(),
        }
