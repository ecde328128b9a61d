"""What a reveal and a direct submission have in common: the code they name."""

from typing import Any

from sqlalchemy import Connection

from node.http_server import ApiProblem
from node.settings_model import Settings
from protocol.forks import check_fork_url
from protocol.messages import RevealSubmission, SubmitKernel
from roles.api.store_submissions import find_code
from roles.api.tables import Row


def checked_fork_url(settings: Settings, fork_url: str) -> str:
    """The normalised URL; raises InvalidForkUrl (422)."""
    return check_fork_url(
        fork_url, allowed_hosts=settings.api.allowed_git_hosts, allow_file=settings.is_local_chain
    )


def check_code_is_new(
    connection: Connection, miner_hotkey: str, commit_hash: str, target_sequence_length: int
) -> None:
    """Raise ApiProblem 409 when the hotkey has submitted that commit for that length."""
    known = find_code(connection, miner_hotkey, commit_hash, target_sequence_length)
    if known is not None:
        raise already_submitted(known)


def code_values(message: RevealSubmission | SubmitKernel, fork_url: str) -> dict[str, Any]:
    """The columns that describe the code and the claim."""
    return {
        "fork_url": fork_url,
        "commit_hash": message.commit_hash,
        "claimed_tokens_per_sec": message.tokens_per_sec,
        "claimed_vram_mb": message.vram_mb,
        "benchmarks": _benchmarks(message),
    }


def _benchmarks(message: RevealSubmission | SubmitKernel) -> dict[str, Any] | None:
    if message.benchmarks is None:
        return None
    return {length: row.model_dump() for length, row in message.benchmarks.items()}


def is_same_code(row: Row, message: RevealSubmission | SubmitKernel, fork_url: str) -> bool:
    """True when the row holds the same URL, commit and claim."""
    return bool(
        row.fork_url == fork_url
        and row.commit_hash == message.commit_hash
        and row.claimed_tokens_per_sec == message.tokens_per_sec
    )


def already_submitted(known: Row) -> ApiProblem:
    """409 that names the submission which has the code already."""
    return ApiProblem(
        409,
        f"commit_hash {known.commit_hash} for target_sequence_length {known.target_sequence_length} "
        f"is submission {known.id} already",
    )
