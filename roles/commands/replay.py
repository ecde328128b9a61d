"""`quasar-node verify --replay`: judge a submission again on the inputs that a validator judged it on."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from node.settings_model import Settings
from protocol.errors import InvalidForkUrl, UsageError
from protocol.forks import check_commit_hash, check_fork_url
from protocol.messages import EvaluationReport, GitSource, StoredVerdict, SubmissionDetail
from protocol.rules import RULES_VERSION
from protocol.verdicts import Status

NOT_COMPARABLE: Final = UsageError.exit_code
"""Another status here, under other rules: neither confirmed nor contradicted."""
SHOWN = ("measured_tokens_per_sec", "spread", "cosine_similarity", "max_abs_diff", "relative_error")


def replay(file: Path, settings: Settings, *, as_json: bool) -> int:
    """Fetch the commit, run the referee with the recorded seeds and print both; 0 when the statuses agree.

    A recorded `duplicate` is compared with the files of the submission that it names.

    Raises:
        UsageError: the file is no answer of GET /submissions/<id> with a verdict, or names code that may not
            be fetched.
        Unavailable: it is a `duplicate` of files that cannot be had.
    """
    from roles.evaluation import Referee

    detail = _read(file)
    verdict = _decided(detail, file)
    source = _source(detail, settings, file)
    seeds = _seeds(verdict, file)
    known = _known_fingerprints(detail, verdict, settings)
    console = Console(stderr=True)
    referee = Referee(settings, settings.node.data_dir, on_stage=lambda stage: console.print(f"{stage} ..."))
    report = asyncio.run(
        referee.evaluate(
            source,
            target_sequence_length=detail.target_sequence_length,
            claimed_tokens_per_sec=detail.claimed_tokens_per_sec,
            known_fingerprints=known,
            seeds=seeds,
        )
    )
    if as_json:
        recorded = verdict.model_dump(mode="json")
        print(json.dumps({"recorded": recorded, "replayed": report.model_dump(mode="json")}, indent=2))
    else:
        _print(verdict, report)
    is_same = report.figures.status is verdict.status
    if verdict.rules_version != RULES_VERSION:
        print(_about_rules(verdict.rules_version), file=sys.stderr)
        return 0 if is_same else NOT_COMPARABLE
    return 0 if is_same else 1


def _known_fingerprints(
    detail: SubmissionDetail, verdict: StoredVerdict, settings: Settings
) -> dict[str, int]:
    """What the referee has to know of earlier submissions to come to the same verdict. Raises Unavailable."""
    if verdict.status is not Status.DUPLICATE:
        return {}
    from roles.commands.replay_duplicate import earlier_fingerprint

    known = earlier_fingerprint(detail, verdict, settings)
    said = (
        "The submission that the verdict names cannot be the original: it is the miner's own, or came later."
    )
    for number in known.values():
        said = f"Compared with the files of submission {number}, which the verdict names."
    print(said, file=sys.stderr)
    return known


def _about_rules(recorded: int) -> str:
    return (
        f"The verdict was given by rules version {recorded}, and here it is {RULES_VERSION}: the same one "
        "here confirms it, another one does not contradict it; for that, replay it with a release that has "
        f"rules version {recorded}."
    )


def _read(file: Path) -> SubmissionDetail:
    try:
        return SubmissionDetail.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--replay {file}: cannot be read: {error.strerror}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = (
            "not UTF-8" if first is None else f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
        )
        raise UsageError(f"--replay {file}: no answer of GET /submissions/<id>: {where}") from error


def _decided(detail: SubmissionDetail, file: Path) -> StoredVerdict:
    """The last verdict that says something about the submission."""
    decided = [verdict for verdict in detail.verdicts if verdict.status is not Status.INFRASTRUCTURE]
    if not decided:
        raise UsageError(f"--replay {file}: submission {detail.submission_id} has no verdict yet")
    return decided[-1]


def _source(detail: SubmissionDetail, settings: Settings, file: Path) -> GitSource:
    if detail.fork_url is None or detail.commit_hash is None:
        raise UsageError(f"--replay {file}: fork_url is null: code is hidden until a verdict")
    try:
        return GitSource(
            fork_url=check_fork_url(
                detail.fork_url,
                allowed_hosts=settings.api.allowed_git_hosts,
                allow_file=settings.is_local_chain,
            ),
            commit_hash=check_commit_hash(detail.commit_hash),
            allow_file=settings.is_local_chain,
            allowed_hosts=settings.api.allowed_git_hosts,
        )
    except InvalidForkUrl as error:
        raise UsageError(f"--replay {file}: {error}") from error


def _seeds(verdict: StoredVerdict, file: Path) -> list[int]:
    seeds: Any = verdict.evidence.get("seeds", [])
    is_sound = isinstance(seeds, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63 for seed in seeds
    )
    if not is_sound:
        raise UsageError(f"--replay {file}: evidence.seeds must be whole numbers from 0, not {seeds!r:.100}")
    return list(seeds)


def _print(verdict: StoredVerdict, report: EvaluationReport) -> None:
    figures = report.figures
    table = Table("figure", "recorded", "here", box=SIMPLE_HEAD, pad_edge=False)
    table.add_row("verdict", verdict.status.value, figures.status.value)
    reasons = (str(evidence.get("reason", "")) for evidence in (verdict.evidence, figures.evidence))
    table.add_row("reason", *map(escape, reasons))
    for name in SHOWN:
        values = (getattr(verdict, name), getattr(figures, name))
        if values != (None, None):
            shown = ("" if value is None else f"{value:,.6g}" for value in values)
            table.add_row(name.replace("_", " "), *shown)
    table.add_row("device", escape(verdict.gpu), figures.gpu)
    for name in ("torch", "triton"):
        table.add_row(name, escape(verdict.versions.get(name, "")), figures.versions.get(name, ""))
    Console().print(table)
    if verdict.gpu != figures.gpu:
        print("Other devices draw other inputs from a seed, and have other speeds.")
