"""A picture of a search: every trial, the best so far, and the preset that it is to reach."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError


def plot(curve: Sequence[Mapping[str, Any]], title: str, target: Path, *, preset_ms: float | None) -> None:
    """Write a PNG; `curve`: what `tune --json` says of its trials.

    Raises ConfigError when matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: run `pip install matplotlib`") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    timed = [point for point in curve if point["milliseconds"] is not None]
    axes.plot(
        [point["elapsed_s"] for point in timed],
        [point["milliseconds"] for point in timed],
        ".",
        alpha=0.5,
        label="a trial",
    )
    found = [point for point in curve if point["best_ms"] is not None]
    axes.step(
        [point["elapsed_s"] for point in found],
        [point["best_ms"] for point in found],
        where="post",
        label="best so far",
    )
    if preset_ms is not None:
        axes.axhline(preset_ms, color="black", linestyle="--", label="shipped preset")
    axes.set(yscale="log", xlabel="seconds", ylabel="milliseconds", title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
