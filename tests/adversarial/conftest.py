"""Submissions as fixtures: our own kernel with something done to it, judged by the real referee."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest

from kernels.export import export_files
from node.sandbox import SandboxTier, detect_tier
from protocol.forks import TARGET_DIR
from protocol.messages import DirectorySource, EvaluationJob, EvaluationReport
from roles.referee.evaluation import evaluate

Judge = Callable[..., EvaluationReport]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a sandbox hostile code does not run, not even ours."""
    if detect_tier() is SandboxTier.NONE:
        for item in items:
            if "adversarial" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="this host offers no sandbox"))


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
        files: dict[str, str | None] = {**export_files(variant), **(replace or {})}
        if suffix:
            files["chunk.py"] = f"{files['chunk.py']}\n\n{suffix}"
        tree = Path(tempfile.mkdtemp(dir=tmp_path))
        (tree / TARGET_DIR).mkdir(parents=True)
        for name, text in files.items():
            if text is not None:
                (tree / TARGET_DIR / name).write_text(text)
        job = EvaluationJob(
            source=DirectorySource(path=str(tree)),
            target_sequence_length=100_000,
            sequence_length=length,
            claimed_tokens_per_sec=claimed,
            profile=profile,
            device="cpu" if profile == "cpu" else "cuda:0",
            trials_min=3 if profile == "cpu" else 6,
            trials_max=3 if profile == "cpu" else 6,
            deadline_s=deadline_s,
            memory_limit_bytes=memory_limit_bytes,
            work_dir=str(tmp_path / "work"),
            known_fingerprints=known_fingerprints or {},
        )
        return evaluate(job, lambda _stage: None)

    return judge
