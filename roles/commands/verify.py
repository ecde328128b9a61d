"""`quasar-node verify`: the validators' referee and verdict, before submitting."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from node.settings import LoadedSettings
from protocol.errors import UsageError
from protocol.leagues import league_of, weighted_score
from protocol.messages import DirectorySource, EvaluationReport
from protocol.rules import CLAIM_FRACTION, MAX_TARGET_SEQUENCE_LENGTH
from protocol.verdicts import Status


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "verify",
        parents=parents,
        help="judge a fork's working tree as a validator would",
        description="Run the validators' referee on fla/ops/quasar/ of a working tree.",
    )
    parser.add_argument("--repo-path", type=Path, required=True, help="root of the fork's working tree")
    parser.add_argument("--seq-len", type=int, help="sequence length (default: the miner's target)")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the verdict; 0 when it is `passed`, 1 otherwise.

    Raises:
        UsageError: the path or the length makes no sense.
    """
    from roles.evaluation import Referee, report_as_json

    settings = loaded.settings
    length = args.seq_len if args.seq_len is not None else settings.miner.target_sequence_length
    if not 1 <= length <= MAX_TARGET_SEQUENCE_LENGTH:
        raise UsageError(f"--seq-len {length}: must be 1 to {MAX_TARGET_SEQUENCE_LENGTH:,}")
    if not args.repo_path.is_dir():
        raise UsageError(
            f"--repo-path {args.repo_path}: no such folder; name the root of your fork's working tree"
        )
    console = Console(stderr=True)
    referee = Referee(settings, settings.node.data_dir, on_stage=lambda stage: console.print(f"{stage} ..."))
    report = asyncio.run(
        referee.evaluate(
            DirectorySource(path=str(args.repo_path.absolute())),
            target_sequence_length=length,
            claimed_tokens_per_sec=None,
        )
    )
    if args.json:
        print(report_as_json(report))
    else:
        _print_report(report, length)
    return 0 if report.figures.status is Status.PASSED else 1


def _print_report(report: EvaluationReport, length: int) -> None:
    figures = report.figures
    table = Table("figure", "value")
    table.add_row("verdict", str(figures.status))
    # A submission chooses the text of its exceptions: not to be read as markup.
    table.add_row("reason", escape(str(figures.evidence.get("reason", ""))))
    table.add_row("league", league_of(length).name)
    table.add_row("device", figures.gpu)
    table.add_row("length that was run", str(figures.evidence.get("shape", {}).get("length", "")))
    measured = figures.measured_tokens_per_sec
    if measured is not None:
        table.add_row("tokens per second", f"{measured:,.1f}")
        table.add_row("weighted score", f"{weighted_score(measured, length):,.1f}")
        table.add_row("highest claim that still holds", f"{measured / CLAIM_FRACTION:,.1f}")
    for name in ("cosine_similarity", "max_abs_diff", "relative_error", "spread", "vram_mb"):
        value = getattr(figures, name)
        if value is not None:
            table.add_row(name.replace("_", " "), f"{value:.6g}")
    table.add_row("isolation", report.sandbox_tier)
    Console().print(table)
