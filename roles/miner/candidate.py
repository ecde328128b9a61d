"""What a proposer gives, and what it is told of the past."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """The files of fla/ops/quasar that may be worth submitting."""

    name: str
    files: Mapping[str, str]
    proposer: str = "files"
    parent: int | None = None
    """Number of the candidate in the history that it was made from."""
    note: str = ""
    """What changed, in the proposer's words."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of names and texts: the same for the same files, whoever proposes them."""
        return hashlib.sha256(json.dumps(dict(self.files), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Unusable:
    """A proposal that came to nothing: kept in the history, and told to who proposes next."""

    name: str
    reason: str
    proposer: str
    parent: int | None = None
    note: str = ""


class Proposer(Protocol):
    """Suggests candidates, one at a time."""

    async def propose(self) -> Candidate | Unusable | None:
        """The next candidate, None when there is nothing new at the moment."""

    async def rest(self, seconds: float) -> None:
        """Wait for the next round, shorter when there is something new to look at."""
