"""What git says when a remote refuses, in one sentence that tells the operator what to do."""

import re
from enum import StrEnum
from typing import Final

from node.git import GitFailed
from protocol.errors import SourceRejected


class Fault(StrEnum):
    """Why a remote refused."""

    TOKEN = "token"  # noqa: S105 - the name of a fault
    """The token is not known: revoked, expired, mistyped."""
    PERMISSION = "permission"
    """The token is known and may not do this."""
    MISSING = "missing"
    """There is no such repository, or not yet."""
    LIMIT = "limit"
    """Too many requests."""
    PROTECTED = "protected"
    """The branch takes no pushes."""
    DIVERGED = "diverged"
    """The branch has commits that are not here."""
    AWAY = "away"
    """The server is away or fails."""
    OTHER = "other"


_PATTERNS: Final = (
    (Fault.PROTECTED, r"GH006|GH013|protected branch|hook declined|repository rule violations"),
    (Fault.DIVERGED, r"non-fast-forward|fetch first|\[rejected\]"),
    (Fault.TOKEN, r"Authentication failed|HTTP 401|error: 401|could not read Username|Invalid username or"),
    (Fault.LIMIT, r"error: 429|HTTP 429|rate limit"),
    (Fault.PERMISSION, r"error: 403|HTTP 403|Permission to .* denied|Write access to repository not granted"),
    (Fault.MISSING, r"error: 404|HTTP 404|[Rr]epository .*not found|does not appear to be a git repository"),
    (
        Fault.AWAY,
        r"error: 5\d\d|HTTP 5\d\d|Could not resolve host|Failed to connect|timed out|unable to access",
    ),
)
_ADVICE: Final = {
    Fault.TOKEN: "it does not accept GITHUB_TOKEN: it was revoked or has expired, set a new one and restart",
    Fault.PERMISSION: "GITHUB_TOKEN may not push there: give it the permission 'Contents: read and write'",
    Fault.MISSING: "there is no such repository, or GitHub is still making the fork",
    Fault.LIMIT: "it has had too many requests",
    Fault.PROTECTED: "the branch is protected: set miner.branch to one that is not",
    Fault.DIVERGED: "the branch has commits of somebody else: set miner.branch to one of this miner's own",
    Fault.AWAY: "it is away",
}


class RemoteRefused(SourceRejected):
    """A remote refused: which one, what it means, what to do, and git's own words after it."""

    def __init__(self, error: GitFailed, url: str, branch: str) -> None:
        self.fault = fault_of(error)
        advice = _ADVICE.get(self.fault)
        told = f"({error})" if advice else str(error)
        super().__init__(f"{url}, branch {branch}: {advice or ''} {told}".replace("  ", " "))


def fault_of(error: GitFailed) -> Fault:
    """Find what kind of refusal it was."""
    for fault, pattern in _PATTERNS:
        if re.search(pattern, error.told):
            return fault
    return Fault.OTHER
