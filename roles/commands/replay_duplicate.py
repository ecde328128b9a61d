"""What a recorded `duplicate` rests on: the earlier submission that it names, and that one's files."""

import asyncio
import re
from pathlib import Path
from typing import Final

from node.clock import SystemClock
from node.http_client import HttpClient
from node.settings_model import Settings
from protocol.errors import ApiRefused, ApiUnavailable, InvalidForkUrl, SourceRejected, Unavailable
from protocol.fingerprint import fingerprint
from protocol.messages import EvaluationJob, StoredVerdict, SubmissionDetail
from roles.evaluation import git_source

CALL_S: Final = 30.0
_NAMED: Final = re.compile(r"\bsubmission ([1-9][0-9]{0,17})\b")


def earlier_fingerprint(
    detail: SubmissionDetail, verdict: StoredVerdict, settings: Settings
) -> dict[str, int]:
    """Return the fingerprint of the submission that a `duplicate` names, and its number.

    Empty when that one cannot be what was copied: it is of the same miner, or came later.
    Raises Unavailable: it is not named, or it or its files cannot be had.
    """
    named = _NAMED.search(str(verdict.evidence.get("reason", "")))
    if named is None:
        raise _nothing_to_conclude("an earlier submission", "the evidence does not say which")
    number = int(named[1])
    try:
        earlier = asyncio.run(_ask(number, settings))
        if not _comes_first(earlier, detail):
            return {}
        return {_fingerprint(earlier, settings): number}
    except (ApiRefused, ApiUnavailable, InvalidForkUrl, SourceRejected) as error:
        raise _nothing_to_conclude(f"submission {number}", str(error)) from error


def _nothing_to_conclude(what: str, why: str) -> Unavailable:
    return Unavailable(f"`duplicate` rests on {what}, and without its files nothing can be concluded: {why}")


async def _ask(number: int, settings: Settings) -> SubmissionDetail:
    clock = SystemClock()
    async with HttpClient(base_url=settings.api.url, attempts_deadline_s=CALL_S, clock=clock) as http:
        return await http.request("GET", f"/submissions/{number}", answer=SubmissionDetail)


def _comes_first(earlier: SubmissionDetail, later: SubmissionDetail) -> bool:
    if earlier.miner_hotkey == later.miner_hotkey or earlier.code_fixed_at is None:
        return False
    # No code that was judged is without its time.
    assert later.code_fixed_at is not None
    return (earlier.code_fixed_at, earlier.submission_id) < (later.code_fixed_at, later.submission_id)


def _fingerprint(detail: SubmissionDetail, settings: Settings) -> str:
    """Of the files, fetched as the referee fetches them. Raises SourceRejected, InvalidForkUrl."""
    from roles.referee.sources import take_sources
    from roles.referee.stages import Ended

    if detail.fork_url is None or detail.commit_hash is None:
        raise SourceRejected("its code is hidden until a verdict")
    work_dir = Path(settings.node.data_dir).absolute() / "evaluations"
    work_dir.mkdir(parents=True, exist_ok=True)
    job = EvaluationJob(
        source=git_source(settings, fork_url=detail.fork_url, commit_hash=detail.commit_hash),
        target_sequence_length=detail.target_sequence_length,
        # Nothing is run: these only have to be there.
        sequence_length=1,
        profile="cpu",
        device="cpu",
        work_dir=str(work_dir),
    )
    try:
        return fingerprint(take_sources(job))
    except Ended as end:
        raise SourceRejected(str(end)) from end
