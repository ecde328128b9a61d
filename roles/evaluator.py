"""What miner and validator ask of the referee."""

from collections.abc import Mapping
from typing import Protocol

from protocol.messages import ComparisonReport, DirectorySource, EvaluationReport, GitSource


class Evaluator(Protocol):
    """Whoever judges a kernel; `roles.evaluation.Referee`."""

    async def evaluate(
        self,
        source: GitSource | DirectorySource,
        *,
        target_sequence_length: int,
        claimed_tokens_per_sec: float | None,
        known_fingerprints: Mapping[str, int] | None = None,
    ) -> EvaluationReport:
        """Check and time one kernel."""

    async def compare(
        self, *, earlier: tuple[GitSource, int], later: tuple[GitSource, int]
    ) -> ComparisonReport:
        """Time two kernels in turn, each a source and its target length in tokens."""

    @property
    def device(self) -> str:
        """Where: `cpu` or `cuda:<n>`."""

    async def is_device_working(self) -> bool:
        """Tell whether anything can be computed there."""
