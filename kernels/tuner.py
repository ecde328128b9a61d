"""Searches launch parameters with Optuna: right first, then fast; a study can be interrupted and resumed."""

import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import optuna
import torch

from kernels import tuned
from kernels.benchmark import MAX_ERROR, Benchmark, Drawn, relative_error
from kernels.chunk import launch_chunk_quasar
from kernels.harness.inputs import Shape
from kernels.launch import Launch
from kernels.presets import DEFAULT, PRESETS
from kernels.reference import chunked

CHOICES: Final[dict[str, tuple[int, ...]]] = {
    "chunk_size": (16, 32, 64),
    "block_v": (16, 32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4, 6, 8),
    "programs": (2, 3, 4, 6, 8, 12),
}
HOPELESS: Final = 1.5
"""A first repetition this much slower than the best median ends a trial."""


class Tuner:
    """One study: a shape on a device. `on_trial` is told of every finished trial.

    Raises ConfigError when the file for the result cannot be read: before the search, not after it.
    """

    def __init__(
        self,
        shape: Shape,
        benchmark: Benchmark,
        *,
        database: Path,
        on_trial: Callable[[Launch, float | None, str], None],
    ) -> None:
        tuned.load_entries(tuned.tuned_file())
        self._shape = shape
        self._benchmark = benchmark
        self._on_trial = on_trial
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
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        database.parent.mkdir(parents=True, exist_ok=True)
        self._study = optuna.create_study(
            study_name=self.key,
            storage=f"sqlite:///{database}",
            sampler=optuna.samplers.TPESampler(seed=0),
            load_if_exists=True,
        )
        if not self._study.trials:
            for launch in dict.fromkeys(preset.launch for preset in (DEFAULT, *PRESETS)):
                self._study.enqueue_trial(asdict(launch))

    @property
    def done(self) -> int:
        """Trials that have come to an end, those of earlier runs included."""
        return sum(trial.state.is_finished() for trial in self._study.trials)

    def run(self, trials: int) -> tuple[Launch, float] | None:
        """Go on until there are so many trials; returns and keeps the best and its milliseconds.

        None when no trial gave a right result.
        """
        while self.done < trials:
            self._study.optimize(self._trial, n_trials=1)
        finished = [trial for trial in self._study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
        if not finished:
            return None
        best = min(finished, key=lambda trial: trial.value or float("inf"))
        launch, milliseconds = Launch(**best.params), float(best.value or 0.0)
        tuned.keep(self.key, launch, milliseconds=milliseconds, trials=self.done)
        return launch, milliseconds

    def _trial(self, trial: optuna.Trial) -> float:
        launch = Launch(**{name: trial.suggest_categorical(name, values) for name, values in CHOICES.items()})

        def operator(x: Drawn) -> torch.Tensor:
            return launch_chunk_quasar(launch, x.q, x.k, x.v, x.beta)[0]

        try:
            milliseconds = self._measure(operator, launch)
        except optuna.TrialPruned as pruned:
            self._on_trial(launch, None, str(pruned))
            raise
        self._on_trial(launch, milliseconds, "")
        return milliseconds

    def _measure(self, operator: Callable[[Drawn], torch.Tensor], launch: Launch) -> float:
        try:
            o = operator(self._draws[0])
        except Exception as failure:
            # Too much shared memory, too many registers: Triton raises what it likes.
            raise optuna.TrialPruned(f"does not run: {type(failure).__name__}") from failure
        error = relative_error(o, self._exact)
        if not error <= MAX_ERROR[self._shape.dtype]:
            raise optuna.TrialPruned(f"wrong: relative error {error:.1e}")
        del o
        first = 1e3 * self._benchmark.time(operator, self._draws[1])
        best = self._best()
        if best is not None and first > HOPELESS * best:
            raise optuna.TrialPruned(f"slow: {first:.3f} ms")
        return 1e3 * statistics.median(self._benchmark.times(operator, self._draws))

    def _best(self) -> float | None:
        values: list[Any] = [trial.value for trial in self._study.trials if trial.value is not None]
        return min(values, default=None)
