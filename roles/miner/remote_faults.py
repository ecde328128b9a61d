"""What git says when a remote refuses, in one sentence that tells the operator what to do."""

from typing import Final

from node.git import GitFailed
from node.git_faults import Fault
from protocol.errors import SourceRejected

_ADVICE: Final = {
    Fault.TOKEN: "it does not accept GITHUB_TOKEN: it was revoked or has expired, set a new one and restart",
    Fault.PERMISSION: "GITHUB_TOKEN may not push there: give it the permission 'Contents: read and write'",
    Fault.MISSING: "there is no such repository, or GitHub is still making the fork",
    Fault.LIMIT: "it has had too many requests",
    Fault.PROTECTED: "the branch is protected: set miner.branch to one that is not",
    Fault.DIVERGED: "the branch has commits of somebody else: set miner.branch to one of this miner's own",
    Fault.AWAY: "it is away",
    Fault.HOST: "this host fails",
}


class RemoteRefused(SourceRejected):
    """A remote refused: which one, what it means, what to do, and git's own words after it."""

    def __init__(self, error: GitFailed, url: str, branch: str) -> None:
        self.fault = error.fault
        advice = _ADVICE.get(self.fault)
        told = f"({error})" if advice else str(error)
        super().__init__(f"{url}, branch {branch}: {advice or ''} {told}".replace("  ", " "))
