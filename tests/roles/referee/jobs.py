"""Jobs for tests of the referee's parts."""

from pathlib import Path
from typing import Any

from protocol.messages import DirectorySource, EvaluationJob


def job_in(folder: Path, **fields: object) -> EvaluationJob:
    """Return a job on a CPU for what lies in a folder, worked on there; `fields` are set otherwise."""
    usual: dict[str, Any] = {
        "source": DirectorySource(path=str(folder)),
        "target_sequence_length": 100_000,
        "sequence_length": 128,
        "profile": "cpu",
        "device": "cpu",
        "work_dir": str(folder),
    }
    return EvaluationJob(**usual | fields)
