"""`quasar-node history`: what the miner of this data directory has tried, and one candidate in full."""

import argparse
import asyncio
import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from node.clock import SystemClock
from node.settings import LoadedSettings
from protocol.errors import ConfigError, UsageError
from protocol.leagues import league_of
from protocol.shown_text import printable

if TYPE_CHECKING:
    from roles.miner.history import Entry, History

LIMIT: Final = 30
PLOT_WIDTH: Final = 60
PLOT_HEIGHT: Final = 10


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "history",
        parents=parents,
        help="show what this miner has tried",
        description="List what this miner has tried, or show one: diff, verdict, decision, best over time.",
    )
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"newest candidates (default: {LIMIT})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", parents=parents, help="show one candidate")
    show.add_argument("number", type=int, help="number of the candidate")
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    show.add_argument("--plot", type=Path, metavar="FILE", help="write best over time as PNG")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the history.

    Raises:
        ConfigError: no miner has run in this data directory, or no matplotlib for --plot.
        UsageError: there is no such candidate, or a number makes no sense.
    """
    from roles.miner.history import HISTORY_FILE

    path = loaded.settings.node.data_dir / HISTORY_FILE
    if not path.exists():
        raise ConfigError(f"{path}: no such file; no miner has run with this data directory (--data-dir)")
    if args.limit < 1:
        raise UsageError(f"--limit {args.limit}: must be at least 1")
    return asyncio.run(_run(args, path))


async def _run(args: argparse.Namespace, path: Path) -> int:
    from roles.miner.history import History

    history = History(path, SystemClock())
    try:
        if args.action == "show":
            await _show(args, history)
        else:
            await _list(args, history)
    finally:
        await history.close()
    return 0


async def _list(args: argparse.Namespace, history: "History") -> None:
    entries = await history.entries(limit=args.limit)
    if args.json:
        print(json.dumps([_document(entry) for entry in entries], indent=2))
        return
    table = Table("no", "from", "proposer", "name", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("length", "phase", "tok/s", "score"):
        table.add_column(heading, justify="right" if heading != "phase" else "left")
    table.add_column("verdict and decision")
    for entry in entries:
        told = entry.decision or entry.reason
        table.add_row(
            str(entry.number),
            "" if entry.parent is None else str(entry.parent),
            entry.proposer,
            _plain(entry.name),
            f"{entry.target_sequence_length:,}",
            entry.phase.value,
            "" if entry.tokens_per_sec is None else f"{entry.tokens_per_sec:,.0f}",
            "" if entry.score is None else f"{entry.score:,.0f}",
            _plain(f"{entry.status or ''} {told}".strip()),
        )
    Console().print(table)


async def _show(args: argparse.Namespace, history: "History") -> None:
    entry = await history.entry(args.number)
    if entry is None:
        raise UsageError(f"history show {args.number}: there is no such candidate")
    files = await history.files(entry.number)
    before = {} if entry.parent is None else await history.files(entry.parent)
    difference = diff(before, files) if before and files else ""
    lineage = await _lineage(history, entry)
    curve = best_over_time(await history.entries(target_sequence_length=entry.target_sequence_length))
    if args.json:
        document = _document(entry) | {"lineage": lineage, "diff": difference, "files": files}
        print(json.dumps(document | {"best_over_time": [_point(*point) for point in curve]}, indent=2))
    else:
        _print(entry, lineage, difference, curve)
    if args.plot is not None:
        _write_plot(curve, entry, args.plot)


def diff(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return what changed between two sets of files, as a unified diff."""
    lines: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, ""), after.get(name, "")
        lines += difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"a/{name}", f"b/{name}", lineterm=""
        )
    return "\n".join(lines)


def best_over_time(entries: Sequence["Entry"]) -> list[tuple[datetime, int, float]]:
    """Return when, by which candidate and to what score the best rose; entries oldest first."""
    curve: list[tuple[datetime, int, float]] = []
    measured = [entry for entry in entries if entry.score is not None and entry.measured_at is not None]
    for entry in sorted(measured, key=lambda entry: (entry.measured_at, entry.number)):
        if not curve or entry.score > curve[-1][2]:
            curve.append((entry.measured_at, entry.number, entry.score))
    return curve


async def _lineage(history: "History", entry: "Entry") -> list[int]:
    """The candidate's ancestors, the nearest first."""
    numbers: list[int] = []
    parent = entry.parent
    # A parent is always older: this ends.
    while parent is not None and parent not in numbers:
        numbers.append(parent)
        before = await history.entry(parent)
        parent = None if before is None else before.parent
    return numbers


def _print(
    entry: "Entry", lineage: Sequence[int], difference: str, curve: list[tuple[datetime, int, float]]
) -> None:
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    rows: dict[str, Any] = {
        "candidate": f"{entry.number} ({entry.phase.value})",
        "name": entry.name,
        "proposer": entry.proposer,
        "made from": " <- ".join(map(str, lineage)),
        "note": entry.note,
        "league": f"{league_of(entry.target_sequence_length).name} ({entry.target_sequence_length:,} tokens)",
        "proposed": f"{entry.created_at:%Y-%m-%d %H:%M:%S}",
        "verdict": entry.status,
        "reason": entry.reason,
        "tokens per second": None if entry.tokens_per_sec is None else f"{entry.tokens_per_sec:,.1f}",
        "weighted score": None if entry.score is None else f"{entry.score:,.1f}",
        "decision": entry.decision,
        "commit": entry.offer and entry.offer["commit_hash"],
        "claim": entry.offer and f"{entry.offer['claim_tokens_per_sec']:,.1f} tokens per second",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, _plain(str(value)))
    console.print(table)
    if difference:
        console.print(
            Syntax(printable(difference, keep="\n"), "diff", background_color="default", word_wrap=True)
        )
    if curve:
        console.print(f"best score over time, {len(curve)} steps:", highlight=False)
        console.print(draw([score for _, _, score in curve]), markup=False, highlight=False)
        for when, number, score in curve:
            console.print(f"{when:%Y-%m-%d %H:%M:%S}  candidate {number}: {score:,.0f}", highlight=False)


def draw(values: Sequence[float], *, width: int = PLOT_WIDTH, height: int = PLOT_HEIGHT) -> str:
    """Return a picture of rising values in characters: a column for each, scaled from 0."""
    columns = [
        values[index * len(values) // min(width, len(values))] for index in range(min(width, len(values)))
    ]
    columns[-1] = values[-1]
    top = max(columns) or 1.0
    rows = []
    for level in range(height, 0, -1):
        label = f"{top * level / height:>14,.0f} |" if level in (height, height // 2, 1) else " " * 15 + "|"
        rows.append(
            label + "".join("#" if value >= top * (level - 0.5) / height else " " for value in columns)
        )
    return "\n".join(rows)


def _write_plot(curve: list[tuple[datetime, int, float]], entry: "Entry", target: Path) -> None:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: run `pip install matplotlib`") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    axes.step([when for when, _, _ in curve], [score for _, _, score in curve], where="post", marker="o")
    axes.set(ylabel="weighted score", title=f"Best so far at {entry.target_sequence_length:,} tokens")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def _document(entry: "Entry") -> dict[str, Any]:
    values = dataclasses.asdict(entry)
    for name in ("created_at", "measured_at"):
        values[name] = None if values[name] is None else values[name].isoformat()
    return values


def _point(when: datetime, number: int, score: float) -> dict[str, Any]:
    return {"at": when.isoformat(), "candidate": number, "score": score}


def _plain(text: str) -> str:
    """A candidate's author chooses the text: nothing of it drives the terminal."""
    return escape(printable(text, keep="\n").replace("\n", " "))
