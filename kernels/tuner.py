"""Searches schedules and launch parameters with Optuna: right first, then fast; interrupted, it goes on.

Half of the trials are Optuna's (a Parzen estimator over the whole space), half are the untried neighbours of
the fastest so far: one parameter changed by one step. The first finds the valley, the second its bottom.
"""

import bisect
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import optuna
import torch

from kernels import tuned
from kernels.benchmark import MAX_ERROR, Benchmark, Drawn, relative_error
from kernels.chunk import launch_chunk_quasar
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.harness.inputs import Shape
from kernels.launch import Launch
from kernels.presets import DEFAULT, PRESETS
from kernels.reference import chunked

CHUNK: Final = "chunk"
RECURRENT: Final = "recurrent"
CHOICES: Final[dict[str, tuple[int, ...]]] = {
    "chunk_size": (16, 32, 64),
    "block_v": (16, 32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4, 6, 8),
    "programs": (2, 3, 4, 6, 8, 12),
}
HOPELESS: Final = 1.5
"""A first repetition this much slower than the best median ends a trial."""
TRIAL_S: Final = 2.0
"""What a slow trial may take: fewer repetitions then, but at least LEAST_REPETITIONS."""
LEAST_REPETITIONS: Final = 3
REPEATS: Final = 10
"""Suggestions in a row that were tried before, after which one that was not is asked for."""
FINALISTS: Final = 5
"""The fastest that are timed once more, in turn: the best of many noisy figures flatters itself."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration: a schedule of the shipped kernels, with launch parameters where it has any."""

    schedule: str
    launch: Launch | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what Optuna keeps of it."""
        return {"schedule": self.schedule} | ({} if self.launch is None else asdict(self.launch))

    @classmethod
    def read(cls, parameters: dict[str, Any]) -> Self:
        """Return the choice of a trial's parameters."""
        values = dict(parameters)
        schedule = values.pop("schedule")
        return cls(schedule, Launch(**values) if values else None)

    def __str__(self) -> str:
        parameters = {} if self.launch is None else asdict(self.launch)
        return ", ".join([self.schedule, *(f"{name} {value}" for name, value in parameters.items())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished trial."""

    choice: Choice
    milliseconds: float | None
    """Median of its repetitions; None when it was wrong, did not run or was hopeless."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best of a study, timed beside its rivals."""

    choice: Choice
    milliseconds: float
    trials: int
    """How many configurations it was the best of."""


class Tuner:
    """One study: a shape on a device; `between` is called before each trial, `on_trial` told of its outcome.

    start: the configuration that comes first is every known preset, or only the plain kernel, token by token
    ("baseline"); the two are studies of their own. Raises ConfigError when the file for the result cannot be
    read: before the search, not after it.
    """

    def __init__(
        self,
        shape: Shape,
        benchmark: Benchmark,
        *,
        database: Path,
        on_trial: Callable[[Outcome], None],
        start: Literal["presets", "baseline"] = "presets",
        between: Callable[[], None] = lambda: None,
    ) -> None:
        tuned.load_entries(tuned.tuned_file())
        self._shape = shape
        self._benchmark = benchmark
        self._on_trial = on_trial
        self._between = between
        self._draws = [benchmark.draw(shape) for _ in range(2)]
        first = self._draws[0]
        self._exact, _ = chunked(first.q, first.k, first.v, first.beta, dtype=torch.float64)
        self.key = tuned.key_of(
            tuned.device_name(benchmark.device),
            heads=shape.heads,
            dim=shape.dim,
            dtype=shape.dtype,
            length=shape.length,
        )
        widest = max(16, shape.dim)
        self._values = CHOICES | {"block_v": tuple(v for v in CHOICES["block_v"] if v <= widest)}
        firsts = [Choice(RECURRENT)]
        if start == "presets":
            launches = [preset.launch for preset in (DEFAULT, *PRESETS)]
            firsts = [Choice(CHUNK, replace(one, block_v=min(one.block_v, widest))) for one in launches]
        self._study = _open_study(f"{self.key} | from {start}", database)
        self._enqueue_untried(firsts)

    @property
    def done(self) -> int:
        """Configurations that have been tried, those of earlier runs included."""
        return len(self._tried())

    def run(self, trials: int | None = None, *, budget_s: float | None = None) -> Found | None:
        """Go on until there are so many trials, or for so long; returns and keeps the best.

        Without either until everything was tried. None when no trial gave a right result.
        """
        ends = None if budget_s is None else time.monotonic() + budget_s
        while (trials is None or self.done < trials) and (ends is None or time.monotonic() < ends):
            self._between()
            trial = self._ask()
            if trial is None:
                break
            self._try(trial)
        return self._best_of_all()

    def side_by_side(self, choices: Sequence[Choice]) -> dict[Choice, float]:
        """Check every choice, then time them in turn; returns milliseconds, of those that are right."""
        right = [choice for choice in dict.fromkeys(choices) if not self._check(self._operator(choice))]
        seconds: dict[Choice, list[float]] = {choice: [] for choice in right}
        for number in range(2 * self._benchmark.repetitions + 1):
            for choice in right if number % 2 else reversed(right):
                drawn = self._draws[number % len(self._draws)]
                seconds[choice].append(self._benchmark.time(self._operator(choice), drawn))
        return {choice: 1e3 * statistics.median(times) for choice, times in seconds.items()}

    def _enqueue_untried(self, choices: Sequence[Choice]) -> None:
        """Have these tried first, unless they were, or wait already."""
        for choice in dict.fromkeys(choices):
            self._study.enqueue_trial(choice.parameters, skip_if_exists=True)

    def _tried(self) -> set[Choice]:
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return {Choice.read(trial.params) for trial in self._study.get_trials(deepcopy=False, states=states)}

    def _ask(self) -> optuna.Trial | None:
        """The next trial of a configuration that was not tried; None when all were."""
        tried = self._tried()
        if len(tried) % 2:
            self._enqueue_neighbour(tried)
        for repeats in itertools.count(1):
            trial = self._study.ask()
            if self._suggest(trial) not in tried:
                return trial
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if repeats % REPEATS == 0 and not self._enqueue_neighbour(tried):
                break
        return None

    def _enqueue_neighbour(self, tried: set[Choice]) -> bool:
        """Have the untried configuration next to the fastest come next; False when everything was tried."""
        near = (
            near for best in self._fastest(len(tried)) for near in self._neighbours(best) if near not in tried
        )
        choice = next(near, None) or next((one for one in self._space() if one not in tried), None)
        if choice is not None:
            self._study.enqueue_trial(choice.parameters)
        return choice is not None

    def _suggest(self, trial: optuna.Trial) -> Choice:
        schedule = trial.suggest_categorical("schedule", (CHUNK, RECURRENT))
        if schedule == RECURRENT:
            return Choice(RECURRENT)
        values = {name: trial.suggest_categorical(name, given) for name, given in self._values.items()}
        return Choice(schedule, Launch(**values))

    def _space(self) -> Iterator[Choice]:
        yield Choice(RECURRENT)
        for values in itertools.product(*self._values.values()):
            yield Choice(CHUNK, Launch(**dict(zip(self._values, values, strict=True))))

    def _neighbours(self, choice: Choice) -> Iterator[Choice]:
        """What differs from a choice by one step of one parameter."""
        if choice.launch is None:
            return
        parameters = asdict(choice.launch)
        for name, values in self._values.items():
            at = bisect.bisect_left(values, parameters[name])
            for near in values[max(0, at - 1) : at + 2]:
                yield Choice(CHUNK, Launch(**(parameters | {name: near})))

    def _try(self, trial: optuna.Trial) -> None:
        choice = Choice.read(trial.params)
        milliseconds, reason = self._measure(choice)
        if milliseconds is None:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, milliseconds)
        self._on_trial(Outcome(choice=choice, milliseconds=milliseconds, reason=reason))

    def _measure(self, choice: Choice) -> tuple[float | None, str]:
        operator = self._operator(choice)
        wrong = self._check(operator)
        if wrong:
            return None, wrong
        first_s = self._benchmark.time(operator, self._draws[1])
        best = self._by_time()[:1]
        if best and 1e3 * first_s > HOPELESS * (best[0].value or float("inf")):
            return None, f"slow: {1e3 * first_s:.3f} ms"
        count = max(LEAST_REPETITIONS, min(self._benchmark.repetitions, int(TRIAL_S / first_s)))
        seconds = [
            self._benchmark.time(operator, self._draws[number % len(self._draws)]) for number in range(count)
        ]
        return 1e3 * statistics.median(seconds), ""

    def _check(self, operator: Callable[[Drawn], torch.Tensor]) -> str:
        """What is wrong with an operator; nothing when it is right."""
        try:
            o = operator(self._draws[0])
        except Exception as failure:  # noqa: BLE001 - too much shared memory: Triton raises what it likes
            return f"does not run: {type(failure).__name__}"
        error = relative_error(o, self._exact)
        return "" if error <= MAX_ERROR[self._shape.dtype] else f"wrong: relative error {error:.1e}"

    def _operator(self, choice: Choice) -> Callable[[Drawn], torch.Tensor]:
        if choice.schedule == RECURRENT:
            return lambda x: fused_recurrent_quasar(x.q, x.k, x.v, x.beta)[0]
        return lambda x: launch_chunk_quasar(choice.launch, x.q, x.k, x.v, x.beta)[0]

    def _fastest(self, count: int) -> list[Choice]:
        """The fastest right configurations, the best first."""
        return list(dict.fromkeys(Choice.read(trial.params) for trial in self._by_time()))[:count]

    def _by_time(self) -> list[optuna.trial.FrozenTrial]:
        states = (optuna.trial.TrialState.COMPLETE,)
        complete = self._study.get_trials(deepcopy=False, states=states)
        return sorted(complete, key=lambda trial: trial.value or float("inf"))

    def _best_of_all(self) -> Found | None:
        """Time the finalists once more, and keep the winner and the best launch of the chunked kernel."""
        done = self.done
        known = self._study.user_attrs.get("found")
        if known is None or known["trials"] != done:
            timed = self.side_by_side(self._fastest(FINALISTS))
            if not timed:
                return None
            order = sorted(timed, key=lambda choice: timed[choice])
            winner = order[0]
            for choice in order:
                if choice.launch is not None:
                    tuned.keep(self.key, choice.launch, milliseconds=timed[choice], trials=done)
                    break
            known = {"choice": winner.parameters, "milliseconds": timed[winner], "trials": done}
            self._study.set_user_attr("found", known)
        return Found(
            choice=Choice.read(known["choice"]), milliseconds=known["milliseconds"], trials=known["trials"]
        )


def _open_study(name: str, database: Path) -> optuna.Study:
    """Open or make a study; what a killed process left unfinished comes first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{database}",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=12),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study
