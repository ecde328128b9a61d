"""Submissions as fixtures: our own kernel with something done to it, judged by the real referee."""

import gc
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch

from kernels.export import export_files
from protocol.forks import TARGET_DIR
from protocol.messages import (
    ComparisonFigures,
    ComparisonJob,
    DirectorySource,
    EvaluationJob,
    EvaluationReport,
)
from roles.referee.comparison import compare
from roles.referee.evaluation import evaluate

Judge = Callable[..., EvaluationReport]
Compare = Callable[..., ComparisonFigures]


@pytest.fixture(autouse=True)
def contained(bubblewrap: None) -> None:
    """Every test here runs hostile code."""


def give_back_memory() -> None:
    """Leave nothing of the GPU to the test before: each job of a validator has a process of its own."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def laid_out(folder: Path, files: Mapping[str, str | None], suffix: str) -> DirectorySource:
    """A working tree of the files, with text appended to chunk.py."""
    tree = Path(tempfile.mkdtemp(dir=folder))
    (tree / TARGET_DIR).mkdir(parents=True)
    for name, text in files.items():
        if text is not None:
            (tree / TARGET_DIR / name).write_text(f"{text}\n\n{suffix}" if name == "chunk.py" else text)
    return DirectorySource(path=str(tree))


@pytest.fixture
def judge_submission(tmp_path: Path) -> Judge:
    """Return a function that judges the exported kernel with text appended to chunk.py or files replaced."""

    def judge(
        suffix: str = "",
        *,
        variant: str = "chunk",
        replace: Mapping[str, str | None] | None = None,
        claimed: float | None = None,
        deadline_s: float = 60.0,
        known_fingerprints: dict[str, int] | None = None,
        profile: Literal["cpu", "gpu"] = "cpu",
        length: int = 128,
        memory_limit_bytes: int = 8 * 2**30,
    ) -> EvaluationReport:
        job = EvaluationJob(
            source=laid_out(tmp_path, {**export_files(variant), **(replace or {})}, suffix),
            target_sequence_length=100_000,
            sequence_length=length,
            claimed_tokens_per_sec=claimed,
            profile=profile,
            device="cpu" if profile == "cpu" else "cuda:0",
            trials_min=3 if profile == "cpu" else 6,
            trials_max=3 if profile == "cpu" else 6,
            deadline_s=deadline_s,
            memory_limit_bytes=memory_limit_bytes,
            # What is almost right is found in nearly all draws, not in every one.
            seeds=list(range(1, 200)),
            work_dir=str(tmp_path / "work"),
            known_fingerprints=known_fingerprints or {},
        )
        give_back_memory()
        return evaluate(job, lambda _stage: None)

    return judge


@pytest.fixture
def compare_submissions(tmp_path: Path) -> Compare:
    """Return a function that runs the exported kernel twice in turn, each time with text appended to it.

    None instead of text: a working tree without a kernel.
    """

    def compare_two(
        earlier: str | None,
        later: str | None,
        *,
        targets: tuple[int, int] = (100_000, 100_000),
        deadlines_s: tuple[float, float] = (120.0, 120.0),
        profile: Literal["cpu", "gpu"] = "cpu",
        lengths: tuple[int, int] = (128, 128),
        trials: int = 2,
    ) -> ComparisonFigures:
        jobs = [
            EvaluationJob(
                source=laid_out(tmp_path, {} if suffix is None else export_files("chunk"), suffix or ""),
                target_sequence_length=target,
                sequence_length=length,
                profile=profile,
                device="cpu" if profile == "cpu" else "cuda:0",
                trials_min=trials,
                trials_max=trials,
                deadline_s=deadline_s,
                work_dir=str(tmp_path / "work"),
            )
            for suffix, target, length, deadline_s in zip(
                (earlier, later), targets, lengths, deadlines_s, strict=True
            )
        ]
        give_back_memory()
        return compare(ComparisonJob(earlier=jobs[0], later=jobs[1]), lambda _stage: None).figures

    return compare_two
