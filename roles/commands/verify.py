"""`quasar-node verify`: the validators' referee and verdict, before submitting."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from node.settings import LoadedSettings
from protocol.errors import UsageError
from protocol.leagues import league_of, weighted_score
from protocol.messages import DirectorySource, EvaluationReport
from protocol.rules import CLAIM_FRACTION, MAX_TARGET_SEQUENCE_LENGTH
from protocol.verdicts import Status

if TYPE_CHECKING:
    from roles.evaluation import Referee

FULL_LENGTHS: Final = (4096, *range(100_000, 1_000_001, 100_000))
PROGRESS_COLUMNS: Final = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "verify",
        parents=parents,
        help="judge a fork's working tree, or an inference server, as a validator would",
        description="Run the validators' referee on fla/ops/quasar/ of a working tree, or their challenges "
        "on an inference server.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--repo-path", type=Path, help="root of the fork's working tree")
    what.add_argument(
        "--replay", type=Path, metavar="FILE", help="judge again what GET /submissions/<id> answered"
    )
    what.add_argument(
        "--inference", metavar="URL", help="challenge a running inference server as validators do"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seq-len", type=int, help="sequence length (default: the miner's target)")
    which.add_argument(
        "--full", action="store_true", help="4,096 and one length of every league, as far as memory allows"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the verdict; 0 when it is `passed`, 1 otherwise. With --full: of every length.

    With --inference: of a running server.

    Raises:
        UsageError: the path, the length or the file to replay makes no sense.
    """
    from roles.evaluation import Referee

    settings = loaded.settings
    if args.inference is not None:
        from roles.commands.verify_inference import verify_inference

        if args.full or args.seq_len is not None:
            raise UsageError("--inference has no length: leave out --seq-len and --full")
        return verify_inference(args.inference, settings, as_json=args.json)
    if args.replay is not None:
        from roles.commands.replay import replay

        if args.full or args.seq_len is not None:
            raise UsageError("--replay takes the length from the file: leave out --seq-len and --full")
        return replay(args.replay, settings, as_json=args.json)
    length = args.seq_len if args.seq_len is not None else settings.miner.target_sequence_length
    if not 1 <= length <= MAX_TARGET_SEQUENCE_LENGTH:
        raise UsageError(f"--seq-len {length}: must be 1 to {MAX_TARGET_SEQUENCE_LENGTH:,}")
    if not args.repo_path.is_dir():
        raise UsageError(
            f"--repo-path {args.repo_path}: no such folder; name the root of your fork's working tree"
        )
    lengths = FULL_LENGTHS if args.full else (length,)
    with Progress(*PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(lengths))

        def on_stage(stage: str) -> None:
            progress.update(bar, description=f"{stage} ...")
            if not progress.console.is_terminal:
                progress.console.print(f"{stage} ...")

        referee = Referee(settings, settings.node.data_dir, on_stage=on_stage)
        judged: list[tuple[int, EvaluationReport]] = []
        for target in lengths:
            judged.append((target, _judge(referee, args.repo_path, target)))
            progress.advance(bar)
            # Longer ones need more memory, and code that was refused is refused at any length.
            if judged[-1][1].figures.status is not Status.PASSED:
                break
    if args.json:
        documents = [
            {"target_sequence_length": target, **report.model_dump(mode="json")} for target, report in judged
        ]
        print(json.dumps(documents if args.full else documents[0], indent=2))
    elif args.full:
        _print_all(judged)
    else:
        _print_report(judged[0][1], length)
    last = judged[-1][1].figures
    is_memorys_end = len(judged) > 1 and last.is_short_of_memory
    return 0 if last.status is Status.PASSED or is_memorys_end else 1


def _judge(referee: "Referee", repo_path: Path, target: int) -> EvaluationReport:
    return asyncio.run(
        referee.evaluate(
            DirectorySource(path=str(repo_path.absolute())),
            target_sequence_length=target,
            claimed_tokens_per_sec=None,
        )
    )


def _print_all(judged: list[tuple[int, EvaluationReport]]) -> None:
    """One row for each length, and where the highest score lies."""
    console = Console()
    table = Table("length", "verdict", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("tok/s", "score", "claim at most", "cosine", "max diff", "VRAM MB"):
        table.add_column(heading, justify="right")
    for target, report in judged:
        figures = report.figures
        measured = figures.measured_tokens_per_sec
        row = [f"{target:,}", figures.status.value]
        if measured is not None:
            row += [
                f"{measured:,.0f}",
                f"{weighted_score(measured, target):,.0f}",
                f"{measured / CLAIM_FRACTION:,.0f}",
            ]
        else:
            row += [""] * 3
        for value in (figures.cosine_similarity, figures.max_abs_diff, figures.vram_mb):
            row.append("" if value is None else f"{value:.5g}")
        table.add_row(*row)
    console.print(table)
    scores = {
        target: weighted_score(report.figures.measured_tokens_per_sec, target)
        for target, report in judged
        if report.figures.measured_tokens_per_sec is not None
    }
    if scores:
        best = max(scores, key=lambda target: scores[target])
        console.print(f"highest weighted score: {scores[best]:,.0f} at {best:,}", highlight=False)
    last = judged[-1][1].figures
    if last.status is not Status.PASSED:
        reason = escape(str(last.evidence.get("reason", "")))
        console.print(f"{judged[-1][0]:,}: {last.status.value}: {reason}", highlight=False)


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
