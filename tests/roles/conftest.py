"""Tiny language models on disk, each made once by the process that makes them in production."""

import subprocess
import sys
from pathlib import Path

import pytest


def _write(path: Path, seed: int) -> Path:
    subprocess.run(
        [sys.executable, "-m", "roles.inference.tiny_model", str(path), "--seed", str(seed)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that stands in for the reference."""
    return _write(tmp_path_factory.mktemp("models") / "tiny", 0)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other weights."""
    return _write(tmp_path_factory.mktemp("models") / "other", 1)
