"""A picture of a benchmark: throughput over length, and how near each operator comes to the copy floor."""

from collections.abc import Sequence
from pathlib import Path

from kernels.benchmark import Row
from protocol.errors import ConfigError


def plot(rows: Sequence[Row], title: str, target: Path) -> None:
    """Write a PNG. Raises ConfigError when matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: run `pip install matplotlib`") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (speed, share) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for name in dict.fromkeys(row.operator for row in rows):
        timed = [row for row in rows if row.operator == name and row.milliseconds is not None]
        if not timed:
            continue
        lengths = [row.length for row in timed]
        speed.plot(lengths, [row.tokens_per_sec for row in timed], marker="o", label=name)
        share.plot(lengths, [row.floor_share for row in timed], marker="o", label=name)
    floors = {
        row.length: row.tokens_per_sec / row.floor_share
        for row in rows
        if row.tokens_per_sec is not None and row.floor_share
    }
    speed.plot(list(floors), list(floors.values()), color="black", linestyle="--", label="copy floor")
    share.axhline(1.0, color="black", linestyle="--")
    for axes, label in ((speed, "tokens per second"), (share, "share of the copy floor")):
        axes.set(xscale="log", yscale="log", xlabel="sequence length", ylabel=label)
        axes.grid(visible=True, which="both", alpha=0.3)
    speed.legend()
    figure.suptitle(title)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
