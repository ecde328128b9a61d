"""What a recorded `duplicate` rests on: the earlier submission that it names, and that one's files."""

import asyncio
from pathlib import Path
from typing import Final

from node.clock import SystemClock
from node.http_client import HttpClient
from node.settings_model import Settings
from protocol.errors import ApiRefused, ApiUnavailable, InvalidForkUrl, SourceRejected, Unavailable
from protocol.fingerprint import fingerprint
from protocol.messages import StoredVerdict, SubmissionDetail
from roles.evaluation import git_source

CALL_S: Final = 30.0


def earlier_fingerprint(
    detail: SubmissionDetail, verdict: StoredVerdict, settings: Settings
) -> dict[str, int]:
    """Return the fingerprint of the submission that a `duplicate` names, and its number.

    Empty when that one cannot be what was copied: it is of the same miner, or came later.
    Raises Unavailable: it is not named, or it or its files cannot be had.
    """
    number = verdict.evidence.get("duplicate_of")
    if type(number) is not int or number < 1:
        raise _nothing_to_conclude("an earlier submission", "the evidence does not say which")
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
    if earlier.miner_hotkey == later.miner_hotkey:
        return False
    if earlier.code_fixed_at is None or later.code_fixed_at is None:
        return False
    return (earlier.code_fixed_at, earlier.submission_id) < (later.code_fixed_at, later.submission_id)


def _fingerprint(detail: SubmissionDetail, settings: Settings) -> str:
    """Of the files, fetched as the referee fetches them. Raises SourceRejected, InvalidForkUrl."""
    from roles.referee.sources import take_sources
    from roles.referee.stages import Ended

    if detail.fork_url is None or detail.commit_hash is None:
        raise SourceRejected("its code is hidden until a verdict")
    work_dir = Path(settings.node.data_dir).absolute() / "evaluations"
    work_dir.mkdir(parents=True, exist_ok=True)
    source = git_source(settings, fork_url=detail.fork_url, commit_hash=detail.commit_hash)
    try:
        return fingerprint(take_sources(source, str(work_dir)))
    except Ended as end:
        raise SourceRejected(str(end)) from end
