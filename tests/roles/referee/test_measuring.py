"""Probes and trials, with the worker's own loop in a thread and operators that are plain PyTorch."""

import gc
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.harness import wire
from kernels.harness.accuracy import NEGLIGIBLE, Accuracy, compare, reference_output
from kernels.harness.inputs import Inputs, InputSets, Shape, chained_beta
from kernels.harness.rooms import HostRoom
from kernels.harness.session import CandidateFailed, Session, Trial
from kernels.harness.trusted_layer import TrustedLayer
from kernels.harness.worker import serve
from kernels.reference import chunked
from protocol.messages import EvaluationJob
from protocol.verdicts import Status
from roles.referee.contestant import Contestant
from roles.referee.drawing import Drawing, Drawn, timed_shape
from roles.referee.measuring import Measuring
from roles.referee.stages import Countdown, Ended
from tests.roles.referee.jobs import job_in

Operator = Callable[..., Any]


def honest(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, **options: Any) -> Any:
    return chunked(q, k, v, beta, **options)


def job_of(tmp_path: Path, *, trials: int = 3, length: int = 96) -> EvaluationJob:
    # A look ahead that is small shows in nearly all draws, not in every one.
    seeds = list(range(1, 200))
    return job_in(tmp_path, sequence_length=length, trials_min=trials, trials_max=trials, seeds=seeds)


@contextmanager
def measuring(
    operator: Operator, tmp_path: Path, *, trials: int = 3, length: int = 96
) -> Iterator[Measuring]:
    job = job_of(tmp_path, trials=trials, length=length)
    ours, theirs = wire.socket_pair()

    operators = {"chunk_quasar": operator, "fused_recurrent_quasar": operator}
    thread = threading.Thread(target=serve, args=(theirs, operators, HostRoom()))
    thread.start()
    try:
        yield Measuring(job, Contestant(Session(ours, deadline_s=lambda: 60.0)), Drawing(job))
    finally:
        ours.close()
        thread.join()
        theirs.close()


def test_an_exact_operator_is_exact(tmp_path: Path) -> None:
    with measuring(honest, tmp_path) as trials:
        trials.probe()
        trials.time()
        figures = trials.measurements()
        seeds = trials._drawing.seeds
    assert figures.relative_error < 1e-6
    assert figures.cosine_similarity > 0.99999
    assert figures.yardstick_relative_error > 1e-3
    assert len(trials.findings.seconds) == 3
    assert len(set(seeds)) == len(seeds)


def test_lengths_vary_from_trial_to_trial_and_never_lie_below_the_target(tmp_path: Path) -> None:
    with measuring(honest, tmp_path, trials=4) as trials:
        trials.time()
        lengths = trials._drawing.lengths
    assert len(set(lengths)) == len(lengths) == 2
    assert all(length >= 96 and (length - 96) % 64 == 0 for length in lengths)
    assert trials.findings.lengths == [*lengths, *lengths]


def test_throughput_is_per_token_of_the_length_that_ran(tmp_path: Path) -> None:
    def slow(q: torch.Tensor, *tensors: torch.Tensor, **options: Any) -> Any:
        time.sleep(q.shape[1] * 1e-3)
        return honest(q, *tensors, **options)

    with measuring(slow, tmp_path, trials=4) as trials:
        trials.time()
        figures = trials.measurements()
    # Each trial slept a millisecond for every token it had; 96 of them are what the job asks for.
    assert figures.tokens_per_sec <= 1000
    assert min(trials.trial_s()) >= 0.096


def test_recorded_seeds_give_the_same_lengths_and_inputs(tmp_path: Path) -> None:
    with measuring(honest, tmp_path) as trials:
        trials.time()
        first = trials._drawing
    job = trials._job.model_copy(update={"seeds": first.seeds})
    again = Drawing(job)
    assert again.lengths == first.lengths
    shape = timed_shape(job, again.lengths[0])
    other = Drawing(job)
    assert torch.equal(again.draw(shape).inputs(0).q, other.draw(shape).inputs(0).q)


def test_a_worker_sleeps_while_its_inputs_are_drawn(tmp_path: Path) -> None:
    events: list[str] = []

    def draw(number: int) -> Inputs:
        events.append("draw")
        return drawn.inputs(number)

    with measuring(honest, tmp_path) as trials:
        drawn = trials._drawing.draw(timed_shape(trials._job, trials._drawing.lengths[0]))
        contestant = Contestant(
            trials._contestant._session,
            pause=lambda: events.append("stopped"),
            resume=lambda: events.append("awake"),
        )
        contestant.run(InputSets(shape=drawn.shape, count=1, draw=draw))
    assert events == ["draw", "awake", "stopped"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_set_is_the_same_for_all_who_need_it(dtype: str, tmp_path: Path) -> None:
    shape = Shape(batch=1, length=96, heads=2, dim=32, dtype=dtype)
    drawn = Drawing(job_of(tmp_path)).draw(shape, count=2)
    first, again = drawn.inputs(1), replace(drawn, seeds=drawn.seeds[1:]).inputs(0)
    for x, y in zip(astuple(first), astuple(again), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(first.q, drawn.inputs(0).q)
    assert (first.k.dtype, first.beta.dtype) == (shape.torch_dtype, torch.float32)
    assert replace(drawn, shape=replace(shape, length=160)).inputs(1).q.shape[1] == 160


def a_trial_of(drawn: Drawn) -> list[torch.Tensor]:
    """Exact outputs of calls that hang together."""
    outputs: list[torch.Tensor] = []
    for number in range(len(drawn.seeds)):
        x = drawn.inputs(number)
        beta = chained_beta(x.beta, outputs[-1]) if outputs else x.beta
        outputs.append(chunked(x.q, x.k, x.v, beta)[0])
    return outputs


def test_each_output_of_a_trial_is_compared_as_a_whole(tmp_path: Path) -> None:
    shape = Shape(batch=1, length=96, heads=4, dim=32, dtype="float32")
    job = job_of(tmp_path)
    drawn = Drawing(job).draw(shape, count=3)
    outputs = a_trial_of(drawn)

    def accuracy(outputs: list[torch.Tensor]) -> Accuracy:
        return Measuring(job, Exact(), Drawing(job)).compare(Trial(outputs, 1.0), drawn)  # type: ignore[arg-type]

    assert accuracy(outputs).relative_error < 1e-6
    for call, head in itertools.product(range(3), range(4)):
        for wrong in (0.5, math.nan):
            worse = [output.clone() for output in outputs]
            worse[call][0, 40, head, 7] += wrong
            assert accuracy(worse).max_abs_diff == pytest.approx(wrong, rel=1e-3, nan_ok=True)
    # Calls that did not wait for the one before, or did not take place.
    apart = [chunked(x.q, x.k, x.v, x.beta)[0] for x in map(drawn.inputs, range(3))]
    assert accuracy(apart).relative_error > 0.01
    assert accuracy([outputs[0], *outputs[:-1]]).relative_error > 0.5


@pytest.mark.parametrize(
    ("operator", "status"),
    [
        (lambda q, k, v, beta, **options: (v, None), Status.WRONG_OUTPUT),
        (lambda q, k, v, beta, **options: (v * float("nan"), None), Status.NAN_OR_INF),
        (
            lambda q, k, v, beta, **options: (
                honest(q, k, v, beta, **options)[0] * (1 + 0.004 * torch.randn(q.shape)),
                None,
            ),
            Status.INCONSISTENT,
        ),
        (
            lambda q, k, v, beta, **options: (honest(q, k, v, beta)[0], None),
            Status.WRONG_OUTPUT,
        ),
    ],
    ids=["identity", "nan", "noise", "packed sequences run together"],
)
def test_probes_end_what_is_wrong(operator: Operator, status: Status, tmp_path: Path) -> None:
    with measuring(operator, tmp_path) as trials, pytest.raises(Ended) as caught:
        trials.probe()
    assert caught.value.status is status


def with_some_of(o: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """Turn each row of o [B, T, H, D] by 0.007 towards that of `later`."""
    return o + 0.007 * o.norm(dim=-1, keepdim=True) * torch.nn.functional.normalize(later, dim=-1)


def sees_the_next(*tensors: torch.Tensor, **options: Any) -> Any:
    o, state = honest(*tensors, **options)
    return torch.cat([with_some_of(o[:, :-1], o[:, 1:]), o[:, -1:]], dim=1), state


def sees_the_end(*tensors: torch.Tensor, **options: Any) -> Any:
    o, state = honest(*tensors, **options)
    return with_some_of(o, o[:, -1:]), state


@pytest.mark.parametrize("operator", [sees_the_next, sees_the_end])
def test_a_look_ahead_too_small_to_be_wrong_is_noticed(operator: Operator, tmp_path: Path) -> None:
    with measuring(operator, tmp_path) as trials:
        trials.time()
        assert trials.measurements().relative_error < 0.008
        with pytest.raises(Ended, match="depend on earlier ones alone") as caught:
            trials.probe()
    assert caught.value.status is Status.WRONG_OUTPUT


def test_a_state_that_is_not_taken_up_is_noticed(tmp_path: Path) -> None:
    def forgetful(*tensors: torch.Tensor, initial_state: Any = None, **options: Any) -> Any:
        return honest(*tensors, **options)

    with measuring(forgetful, tmp_path) as trials, pytest.raises(Ended) as caught:
        trials.probe()
    assert caught.value.status is Status.WRONG_OUTPUT
    assert "in parts, from state to state" in str(caught.value)


def test_a_state_that_is_not_returned_is_noticed(tmp_path: Path) -> None:
    def stateless(*tensors: torch.Tensor, **options: Any) -> Any:
        return honest(*tensors, **options)[0], None

    with measuring(stateless, tmp_path) as trials, pytest.raises(CandidateFailed) as caught:
        trials.probe()
    assert caught.value.kind == "crash"
    assert "final_state must be a torch.Tensor [2, 2, 32, 32] of torch.float32, not NoneType" in str(
        caught.value
    )


def small_rows(o: torch.Tensor) -> torch.Tensor:
    """Those [B, T, H, 1] whose direction is left out of the comparison of o."""
    norms = o.norm(dim=-1, keepdim=True)
    return norms < 0.8 * NEGLIGIBLE * norms.median()


def turned_round(o: torch.Tensor) -> torch.Tensor:
    """Turn those rows the other way round."""
    return torch.where(small_rows(o), o.flip(-1), o)


def shows_in_a_layer(drawn: Drawn) -> bool:
    """Whether that makes a difference here: not where another head outweighs the rows, or a gate is shut."""
    layer = TrustedLayer.draw(drawn.shape, drawn.generator(0))
    o = reference_output(layer.inputs(), torch.device("cpu"))
    return compare(layer.output(turned_round(o)), layer.output(o)).cosine_similarity < 0.9


def test_what_is_wrong_inside_a_layer_alone_is_noticed(tmp_path: Path) -> None:
    """A layer makes rows that are too small to be compared by their direction as large as all others."""

    def coarse(*tensors: torch.Tensor, **options: Any) -> Any:
        o, state = honest(*tensors, **options)
        return turned_round(o), state

    with measuring(coarse, tmp_path) as trials:
        shape = Shape(batch=1, length=50, heads=2, dim=32, dtype="float32")
        draws = (trials._drawing.draw(shape) for _ in itertools.count())
        drawn = next(one for one in draws if shows_in_a_layer(one))
        with pytest.raises(Ended, match="a layer's output"):
            trials._probe_layer(drawn)


@pytest.mark.parametrize("length", [1, 2, 63, 65])
def test_any_length_can_be_measured(length: int, tmp_path: Path) -> None:
    with measuring(honest, tmp_path, length=length) as trials:
        trials.probe()
        trials.time()
        assert trials.measurements().relative_error < 1e-6
        assert min(trials.findings.lengths) == length


def test_measuring_leaves_no_descriptor_open(tmp_path: Path) -> None:
    # What earlier tests left in reference cycles is closed now, not in between.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with measuring(honest, tmp_path) as trials:
        trials.time()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_time_of_others_is_given_back() -> None:
    now = [100.0]
    left_s = Countdown(10.0, lambda: now[0])
    now[0] += 4.0
    assert left_s() == 6.0
    left_s.extend(3.0)
    assert left_s() == 9.0


def test_no_time_passes_while_a_countdown_is_stopped() -> None:
    now = [100.0]
    left_s = Countdown(10.0, lambda: now[0])
    for call in (left_s.stop, left_s.stop, left_s.go, left_s.go):
        now[0] += 1.0
        call()
    # Before the first `stop` and after the first `go`.
    assert left_s() == 8.0
    left_s.stop()
    left_s.extend(1.0)
    now[0] += 5.0
    assert left_s() == 9.0


class Exact:
    """A contestant that is always right and quick, and notes how many sets it was given at each length."""

    def __init__(self) -> None:
        self.sets: dict[int, set[int]] = {}

    def run(self, sets: InputSets, *, cu_seqlens: list[int] | None = None, **_: Any) -> Trial:
        self.sets.setdefault(sets.shape.length, set()).add(sets.count)
        output = reference_output(sets.draw(0), torch.device("cpu"), cu_seqlens)
        return Trial([output], 0.001 * (1 + sets.count), None)


def probed(contestant: Exact, tmp_path: Path) -> Measuring:
    """Probe a contestant beside a yardstick whose hand-over takes a millisecond."""
    job = job_of(tmp_path)
    yardstick: Any = SimpleNamespace(sets=64, overhead_s=0.001)
    trials = Measuring(job, contestant, Drawing(job), yardstick)  # type: ignore[arg-type]
    trials.probe()
    return trials


def test_no_more_sets_than_fit_beside_a_yardstick_of_a_shorter_league(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drawing, "most_sets", lambda _self, _shape: 3)
    contestant = Exact()
    assert probed(contestant, tmp_path).calls == 3
    assert max(max(counts) for counts in contestant.sets.values()) == 3


def test_a_slow_operator_is_not_called_more_often_than_a_trial_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Exact):
        def run(self, sets: InputSets, **options: Any) -> Trial:
            return replace(super().run(sets, **options), seconds=0.001 + 0.1 * sets.count)

    monkeypatch.setattr(Drawing, "most_sets", lambda _self, _shape: 64)
    contestant = Slow()
    assert probed(contestant, tmp_path).calls == 1
    assert max(max(counts) for counts in contestant.sets.values()) == 1


@pytest.mark.parametrize("disturbed", [11, 12])
def test_a_disturbed_trial_does_not_make_the_others_shorter(
    disturbed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten untimed runs come first, then two by which the calls of a trial are counted."""
    call_s: list[float] = []
    runs = itertools.count(1)

    def sets_for(_self: Drawing, _shape: Any, seconds: float) -> int:
        call_s.append(seconds)
        return 1

    class Disturbed(Exact):
        def run(self, sets: InputSets, **options: Any) -> Trial:
            trial = super().run(sets, **options)
            return replace(trial, seconds=1.0 if next(runs) == disturbed else 0.003)

    monkeypatch.setattr(Drawing, "sets_for", sets_for)
    probed(Disturbed(), tmp_path)
    assert call_s == pytest.approx([0.002, 0.002])
