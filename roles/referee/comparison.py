"""Two submissions timed in turn on the same inputs: whether the later one's lead over the earlier is real."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from kernels.harness.session import CandidateFailed
from node.device_turns import BackgroundTurn
from node.sandbox import SandboxTier
from protocol.errors import DeviceBusy, SandboxUnavailable
from protocol.judging import Measurements, judge
from protocol.leads import judge_lead
from protocol.leagues import weighted_score
from protocol.messages import ComparisonFigures, ComparisonJob, ComparisonReport, EvaluationJob
from protocol.rules import RULES_VERSION
from protocol.verdicts import LeadOutcome, Status
from roles.referee.drawing import Drawing, Drawn, timed_shape
from roles.referee.evaluation import (
    LOCK_TIMEOUT_S,
    STATUS_OF,
    Announce,
    device_name,
    settled_yardstick,
    versions,
)
from roles.referee.gpu import MemoryWatch, roofline_tokens_per_sec, wait_until_cool
from roles.referee.measuring import Measuring
from roles.referee.sources import take_sources
from roles.referee.stages import Countdown, Ended, Record, printable
from roles.referee.worker import Worker, choose_tier, empty_caches, running_worker
from roles.referee.yardstick import STEADY, Yardstick

MEMORY_SHARE: Final = 3
"""Each of the two may hold this part of the GPU, so that neither takes it from the other or the referee."""


class SideLost(Exception):
    """One of the two does not do what its verdict says that it does."""

    def __init__(self, side: "Side", status: Status, reason: str) -> None:
        super().__init__(f"the {side.name} submission: {status}: {reason}")
        self.side = side


class Side:
    """One of the two: its time runs, and its memory counts, in its own turns alone."""

    def __init__(self, name: str, job: EvaluationJob) -> None:
        self.name = name
        self.job = job
        self.sources: dict[str, str] = {}
        self.left_s = Countdown(job.deadline_s)
        self.drawing: Drawing
        self.worker: Worker
        self.measuring: Measuring
        self.found: Measurements | None = None
        self._watch: MemoryWatch | None = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """What fails meanwhile is this one's failure, unless the referee says that it is its own."""
        try:
            yield
        except CandidateFailed as failure:
            raise SideLost(self, STATUS_OF[failure.kind], str(failure)) from failure
        except Ended as end:
            if end.status is Status.INFRASTRUCTURE:
                raise
            raise SideLost(self, end.status, str(end)) from end

    def start(
        self,
        tier: SandboxTier,
        drawing: Drawing,
        yardstick: Yardstick | None,
        give_way: Callable[[], float],
        opened: ExitStack,
    ) -> None:
        """Start its worker, which `opened` ends."""
        self.drawing = drawing
        if self.job.device != "cpu":
            device = torch.device(self.job.device)
            share = torch.cuda.get_device_properties(device).total_memory // MEMORY_SHARE
            self._watch = MemoryWatch(device, min(share, self.job.vram_limit_bytes or share))

        def after_trial() -> None:
            if self._watch is not None:
                self._watch.look()
            self.left_s.extend(give_way())

        self.left_s = Countdown(self.job.deadline_s)
        self.worker = opened.enter_context(running_worker(self.sources, self.job, tier, self.left_s))
        contestant = self.worker.contestant
        self.measuring = Measuring(self.job, contestant, drawing, yardstick, after_trial=after_trial)

    def resume(self) -> None:
        """Look at the GPU's memory as it is before its turn."""
        if self._watch is not None:
            self._watch.resume()

    def trial(self, number: int, drawn: Drawn) -> None:
        """Run a timed trial on what was drawn, at this one's own length."""
        length = self.drawing.lengths[number % len(self.drawing.lengths)]
        self.measuring.trial(replace(drawn, shape=timed_shape(self.job, length)))

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
            "calls": self.measuring.calls,
            "trial_s": [round(seconds, 7) for seconds in self.measuring.trial_s()],
            "log_tail": self.worker.log_tail(),
        }


def compare(job: ComparisonJob, announce: Announce) -> ComparisonReport:
    """Time both in turn; `announce` gets each stage's name."""
    record, tier, ratio = Record(), SandboxTier.NONE, None
    earlier, later = Side("earlier", job.earlier), Side("later", job.later)
    try:
        work_dir = Path(job.later.work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)
        empty_caches(work_dir)
        with record.stage("fetch", announce):
            _fetch(earlier, later)
        with record.stage("sandbox", announce):
            tier = choose_tier(job.later)
        with record.stage("wait for device", announce):
            turn = BackgroundTurn(job.later.device, timeout_s=LOCK_TIMEOUT_S)
            turn.acquire()
        try:
            _Match(earlier, later, turn, record, announce).play(tier)
        finally:
            turn.release()
        with earlier.answering():
            below = earlier.judge()
        with later.answering():
            ratio = later.judge() / below
        outcome, reason = judge_lead(ratio), f"the weighted scores are as {ratio:.4f} to 1"
    except SideLost as lost:
        outcome = LeadOutcome.LATER_FAILED if lost.side is later else LeadOutcome.EARLIER_FAILED
        reason = str(lost)
    except (Ended, SandboxUnavailable, DeviceBusy) as error:
        outcome, reason = LeadOutcome.INFRASTRUCTURE, str(error)
    except torch.cuda.OutOfMemoryError as error:
        outcome, reason = LeadOutcome.INFRASTRUCTURE, f"no memory left for the referee: {error}"
    record.evidence |= {"reason": printable(reason), "profile": job.later.profile, "stage_s": record.stage_s}
    figures = ComparisonFigures(
        outcome=outcome,
        later_tokens_per_sec=later.found.tokens_per_sec if later.found else None,
        earlier_tokens_per_sec=earlier.found.tokens_per_sec if earlier.found else None,
        later_spread=later.found.spread if later.found else None,
        earlier_spread=earlier.found.spread if earlier.found else None,
        ratio=ratio,
        gpu=device_name(job.later.device),
        versions=versions(),
        rules_version=RULES_VERSION,
        evidence=record.evidence,
    )
    return ComparisonReport(figures=figures, sandbox_tier=tier.value)


def _fetch(*sides: Side) -> None:
    """Take the files of both. Raises SideLost: one could not be had; Ended: neither, the host may be away."""
    lost: list[SideLost] = []
    for side in sides:
        try:
            with side.answering():
                side.sources = take_sources(side.job)
        except SideLost as error:
            lost.append(error)
    if len(lost) == len(sides):
        raise Ended(Status.INFRASTRUCTURE, "; ".join(map(str, lost)))
    if lost:
        raise lost[0]


class _Match:
    """The trials of both, with the yardstick between them on a GPU."""

    def __init__(
        self, earlier: Side, later: Side, turn: BackgroundTurn, record: Record, announce: Announce
    ) -> None:
        self._earlier = earlier
        self._later = later
        self._turn = turn
        self._record = record
        self._announce = announce
        job = earlier.job
        # It is there before them, beside both, and after them.
        self._yardstick_left_s = Countdown(4 * job.deadline_s)

    def play(self, tier: SandboxTier) -> None:
        """Run all trials. Raises SideLost, Ended."""
        job = self._earlier.job
        drawing = Drawing(job)
        # The same steps above the target, so that equal targets give equal lengths.
        again = Drawing(self._later.job.model_copy(update={"seeds": drawing.seeds[:1]}))
        with ExitStack() as outlasting:
            yardstick = None
            if job.profile == "gpu":
                with self._record.stage("yardstick", self._announce):
                    self._record.evidence["gpu_state"] = wait_until_cool(job.device)
                    left_s = self._yardstick_left_s
                    yardstick = settled_yardstick(job, drawing, outlasting, left_s)
            with ExitStack() as opened:
                opened.callback(self._note_yardstick, yardstick)
                for side, drawn_by in ((self._earlier, drawing), (self._later, again)):
                    side.start(tier, drawn_by, yardstick, self._give_way, opened)
                    # While what its worker printed is still there.
                    opened.callback(self._note, side)
                    with self._record.stage(f"probe {side.name}", self._announce), self._turn_of(side):
                        side.worker.contestant.wait_ready()
                        side.measuring.probe()
                with self._record.stage("time", self._announce):
                    self._time(yardstick)
            if yardstick is not None:
                self._check_quiet(yardstick)

    def _time(self, yardstick: Yardstick | None) -> None:
        job, started, number = self._earlier.job, time.monotonic(), 0
        while number < job.trials_max:
            if number >= job.trials_min and time.monotonic() - started > job.time_budget_s:
                break
            drawing = self._earlier.drawing
            shape = timed_shape(job, drawing.lengths[number % len(drawing.lengths)])
            sets = max(
                self._earlier.measuring.calls,
                self._later.measuring.calls,
                yardstick.sets if yardstick is not None else 1,
            )
            drawn = drawing.draw(shape, count=sets)
            # They change places from round to round, so that a drift hits both alike. Whoever leaves the GPU
            # busy slows down the yardstick, which comes next, and not the other one.
            first, second = self._in_order(number)
            with self._turn_of(first):
                first.trial(number, drawn)
            if yardstick is not None:
                yardstick.trial(drawn)
            with self._turn_of(second):
                second.trial(number, drawn)
            number += 1

    def _in_order(self, number: int) -> tuple[Side, Side]:
        one, other = self._earlier, self._later
        return (one, other) if number % 2 == 0 else (other, one)

    @contextmanager
    def _turn_of(self, side: Side) -> Iterator[None]:
        """The time of this one's turn is not the other's."""
        other = self._later if side is self._earlier else self._earlier
        started = time.monotonic()
        side.resume()
        try:
            with side.answering():
                yield
        finally:
            other.left_s.extend(time.monotonic() - started)

    def _give_way(self) -> float:
        """Let a challenge to a model on this device go first; returns the seconds that it took."""
        started = time.monotonic()
        self._turn.give_way()
        seconds = time.monotonic() - started
        self._yardstick_left_s.extend(seconds)
        return seconds

    def _check_quiet(self, yardstick: Yardstick) -> None:
        """Blame a GPU that was busy beside the two on the one after whose turns it was.

        Raises:
            SideLost: the yardstick was slower after one of them than after the other. Ended: infrastructure.
        """
        try:
            yardstick.check_after()
        except Ended as end:
            after = {self._earlier: yardstick.beside[::2], self._later: yardstick.beside[1::2]}
            slow, quick = sorted(after, key=lambda side: -_median(after[side]))
            if _median(after[slow]) > (1 + STEADY) * _median(after[quick]):
                raise SideLost(slow, Status.TAMPERED, f"after its turns, {end}") from end
            raise Ended(Status.INFRASTRUCTURE, str(end)) from end

    def _note(self, side: Side) -> None:
        self._record.evidence[side.name] = side.evidence()

    def _note_yardstick(self, yardstick: Yardstick | None) -> None:
        if yardstick is not None:
            self._record.evidence["yardstick"] = yardstick.evidence()


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
