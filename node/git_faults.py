"""Why git failed, from what it and the remote said: somebody's answer, or something that passes."""

import re
from enum import StrEnum
from typing import Final


class Fault(StrEnum):
    """Why git failed."""

    CONTENT = "content"
    """The remote sent what git does not take."""
    HOST = "host"
    """This host fails: its disk is full, its memory, its processes."""
    TOKEN = "token"  # noqa: S105 - the name of a fault
    """The token is not known: revoked, expired, mistyped; or there is none and one is needed."""
    PERMISSION = "permission"
    """The token is known and may not do this."""
    MISSING = "missing"
    """There is no such repository or commit, or not yet."""
    LIMIT = "limit"
    """Too many requests."""
    PROTECTED = "protected"
    """The branch takes no pushes."""
    DIVERGED = "diverged"
    """The branch has commits that are not here."""
    AWAY = "away"
    """The server cannot be reached, fails, or breaks off."""
    OTHER = "other"


PASSING: Final = frozenset((Fault.HOST, Fault.LIMIT, Fault.AWAY))
"""Say nothing about the repository: the same question may be answered later."""

# The first that fits. What the remote itself says begins with "remote: ".
_PATTERNS: Final = (
    # First, because git's complaint about an object may quote what a stranger wrote in it.
    (Fault.CONTENT, r"fsck error"),
    (
        Fault.HOST,
        r"^(?!remote: ).*(No space left on device|Disk quota exceeded|Read-only file system"
        r"|Cannot allocate memory|Out of memory, malloc failed|Too many open files|Input/output error"
        r"|Stale file handle|Resource temporarily unavailable|died of signal (7|9|15)\b)",
    ),
    (Fault.PROTECTED, r"GH006|GH013|protected branch|hook declined|repository rule violations"),
    (Fault.DIVERGED, r"non-fast-forward|fetch first|\[rejected\]"),
    (Fault.TOKEN, r"Authentication failed|HTTP 401|error: 401|could not read Username|Invalid username or"),
    (Fault.LIMIT, r"error: 429|HTTP 429|rate limit"),
    (Fault.PERMISSION, r"error: 403|HTTP 403|Permission to .* denied|Write access to repository not granted"),
    (
        Fault.MISSING,
        r"error: 404|HTTP 404|[Rr]epository .*not found|does not appear to be a git repository|not our ref",
    ),
    (
        Fault.AWAY,
        r"error: (408|5\d\d)|HTTP (408|5\d\d)"
        # curl's own words. A status of HTTP (its error 22) was an answer; 23 is what it could not hand on.
        r"|unable to access '[^']*': (?!The requested URL returned error)|RPC failed; curl (?!22 |23 )"
        r"|unexpected disconnect|hung up unexpectedly|bad pack header|possible repository corruption",
    ),
)


def fault_of(told: str) -> Fault:
    """Find what kind of failure it was."""
    for fault, pattern in _PATTERNS:
        if re.search(pattern, told, re.MULTILINE):
            return fault
    return Fault.OTHER
