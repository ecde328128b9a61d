"""Two submissions timed in turn on the same inputs: whether the later one's lead over the earlier is real."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from kernels.harness.session import Trial
from node.device_turns import BackgroundTurn
from node.sandbox_spec import SandboxTier
from protocol.errors import DeviceBusy, SandboxUnavailable
from protocol.leads import judge_lead
from protocol.messages import ComparisonFigures, ComparisonJob, ComparisonReport
from protocol.rules import RULES_VERSION
from protocol.verdicts import LeadOutcome, Status
from roles.referee.drawing import Drawing, Drawn, timed_shape
from roles.referee.evaluation import LOCK_TIMEOUT_S, Announce, device_name, settled_yardstick, versions
from roles.referee.gpu import using_memory
from roles.referee.own_folder import remove_left_folders
from roles.referee.side import Side, SideLost
from roles.referee.sources import take_sources
from roles.referee.stages import Countdown, Ended, Record, stated
from roles.referee.worker import choose_tier
from roles.referee.yardstick import ACCUSING, STEADY, Yardstick


def compare(job: ComparisonJob, announce: Announce) -> ComparisonReport:
    """Time both in turn; `announce` gets each stage's name."""
    record, tier, ratio = Record(), SandboxTier.NONE, None
    earlier, later = Side("earlier", job.earlier), Side("later", job.later)
    try:
        work_dir = Path(job.later.work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)
        remove_left_folders(work_dir)
        with record.stage("fetch", announce):
            _fetch(earlier, later)
        with record.stage("sandbox", announce):
            tier = choose_tier(job.later)
        with record.stage("wait for device", announce):
            turn = BackgroundTurn(job.later.device, timeout_s=LOCK_TIMEOUT_S)
            turn.acquire()
        try:
            with using_memory():
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
    record.evidence |= {"reason": stated(reason), "profile": job.later.profile, "stage_s": record.stage_s}
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
    """Take the files of both.

    Raises:
        SideLost: the repository of one refused them. Ended: infrastructure, both did, the host may err; or
            nothing was learned about one, whatever is known of the other, whose files may have been kept.
    """
    lost: list[SideLost] = []
    for side in sides:
        try:
            with side.answering():
                side.sources = take_sources(side.job.source, side.job.work_dir)
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
        # The yardstick is there before them, beside both, and after them.
        self._yardstick_left_s = Countdown(4 * earlier.job.deadline_s)

    def play(self, tier: SandboxTier) -> None:
        """Run all trials. Raises SideLost, Ended."""
        job = self._earlier.job
        drawing = Drawing(job)
        # The same steps above the target, so that equal targets give equal lengths.
        again = Drawing(self._later.job.model_copy(update={"seeds": drawing.seeds[:1]}))
        with ExitStack() as outlasting:
            yardstick = None
            if job.profile == "gpu":
                left_s = self._yardstick_left_s
                yardstick = settled_yardstick(job, drawing, outlasting, left_s, self._record, self._announce)
            try:
                self._play_both(tier, drawing, again, yardstick)
            except SideLost:
                if yardstick is not None:
                    yardstick.expect_working()
                raise
            if yardstick is not None:
                self._check_quiet(yardstick)
                # What is taken off the trials may be another amount since then.
                for side in (self._earlier, self._later):
                    self._record.evidence[side.name] |= side.measuring.evidence()

    def _play_both(
        self, tier: SandboxTier, drawing: Drawing, again: Drawing, yardstick: Yardstick | None
    ) -> None:
        started: list[Side] = []
        with ExitStack() as opened:
            for side, drawn_by in ((self._earlier, drawing), (self._later, again)):
                side.start(tier, drawn_by, yardstick, self._give_way, opened)
                side.at_end(self._note)
                started.insert(0, side)
                with self._record.stage(f"probe {side.name}", self._announce):
                    with self._turn_of(side):
                        side.wait_ready()
                        side.measuring.probe()
                    if yardstick is not None:
                        _expect_free(yardstick, started)
            with self._record.stage("time", self._announce):
                self._time(yardstick)

    def _time(self, yardstick: Yardstick | None) -> None:
        job, sets = self._earlier.job, self._sets(yardstick)
        started, number = time.monotonic(), 0
        while number < job.trials_max:
            if number >= job.trials_min and time.monotonic() - started > job.time_budget_s:
                break
            self._round(number, sets, yardstick)
            number += 1

    def _round(self, number: int, sets: dict[int, int], yardstick: Yardstick | None) -> None:
        """Run one trial of each. Its outputs, gigabytes, are gone before the next round's are there."""
        job, drawing = self._earlier.job, self._earlier.drawing
        shape = timed_shape(job, drawing.lengths[number % len(drawing.lengths)])
        drawn = drawing.draw(shape, count=max(sets.values()))
        # They change places from round to round, so that a drift hits both alike. Whoever leaves the GPU busy
        # slows down the yardstick, which comes next, and not the other one. What the GPU has to do for
        # comparing comes after all: it waits for what is left running, in nobody's time.
        first, second = self._in_order(number)
        theirs = {
            side: side.at_its_length(number, _first(drawn, sets[side.job.sequence_length]))
            for side in (first, second)
        }
        beside, ours = None, _first(drawn, sets[job.sequence_length])
        trials = {first: self._timed(first, theirs[first])}
        if yardstick is not None:
            beside = yardstick.run(ours)
            if yardstick.slowing_in(yardstick.beside[-1:]) > ACCUSING:
                _expect_free(yardstick, (first, second))
        trials[second] = self._timed(second, theirs[second])
        if yardstick is not None and beside is not None:
            yardstick.compare(beside, ours)
        for side, trial in trials.items():
            side.measuring.compare(trial, theirs[side])

    def _sets(self, yardstick: Yardstick | None) -> dict[int, int]:
        """How many sets are handed over at each length: as many to all, because more take longer."""
        length = self._earlier.job.sequence_length
        sets = {length: 1 if yardstick is None else yardstick.sets}
        for side in (self._earlier, self._later):
            length = side.job.sequence_length
            sets[length] = max(side.measuring.calls, sets.get(length, 1))
        return sets

    def _timed(self, side: Side, drawn: Drawn) -> Trial:
        with self._turn_of(side):
            return side.measuring.timed(drawn)

    def _in_order(self, number: int) -> tuple[Side, Side]:
        one, other = self._earlier, self._later
        return (one, other) if number % 2 == 0 else (other, one)

    @contextmanager
    def _turn_of(self, side: Side) -> Iterator[None]:
        """What the GPU's memory gains, and what fails, is this one's."""
        side.resume()
        with side.answering():
            yield

    def _give_way(self) -> None:
        """Let a challenge to a model on this device go first."""
        started = time.monotonic()
        self._turn.give_way()
        self._yardstick_left_s.extend(time.monotonic() - started)

    def _check_quiet(self, yardstick: Yardstick) -> None:
        """Make sure that the GPU was nobody else's, and was left free by both.

        Raises:
            SideLost: the yardstick was slower after one of them than after the other. Ended: infrastructure.
        """
        after = {
            self._earlier: yardstick.slowing_in(yardstick.beside[::2]),
            self._later: yardstick.slowing_in(yardstick.beside[1::2]),
        }
        quick, slow = sorted(after, key=lambda side: after[side])
        if after[slow] - after[quick] > STEADY:
            raise SideLost(
                slow,
                Status.TAMPERED,
                f"the GPU was busy after its turns: the yardstick was {after[slow]:.0%} slower then than "
                f"before, and {after[quick]:.0%} after the other one's",
            )
        try:
            yardstick.check_after()
        except Ended as end:
            raise Ended(Status.INFRASTRUCTURE, str(end)) from end

    def _note(self, side: Side) -> None:
        self._record.evidence[side.name] = side.evidence()


def _expect_free(yardstick: Yardstick, suspects: Sequence[Side]) -> None:
    """Make sure that nobody's time runs out on a busy GPU: end one suspect after the other until it is free.

    Raises:
        SideLost: it is free once this one is gone. Ended: infrastructure, it is somebody else's.
    """
    if not yardstick.is_disturbed():
        return
    for side in suspects:
        side.end()
        yardstick.wait_for_clearing()
        if not yardstick.is_disturbed():
            raise SideLost(
                side,
                Status.TAMPERED,
                f"the GPU was busy after its turn: the yardstick was more than {ACCUSING:.0%} slower than "
                "before, and no more once it was gone",
            )
    raise Ended(Status.INFRASTRUCTURE, "the GPU is not free: the yardstick is slower than before")


def _first(drawn: Drawn, count: int) -> Drawn:
    return replace(drawn, seeds=drawn.seeds[:count])
