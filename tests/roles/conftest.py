"""Tiny language models on disk, made once, by the module that makes them in production."""

import subprocess
import sys
from pathlib import Path

import pytest

# One process for both: loading torch takes longer than writing the models.
PROGRAM = """
import sys
from roles.inference.tiny_model import main
for seed, path in enumerate(sys.argv[1:]):
    main([path, "--seed", str(seed)])
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one shape with different weights."""
    folder = tmp_path_factory.mktemp("models")
    paths = (folder / "tiny", folder / "other")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)], check=True, capture_output=True, timeout=280
    )
    return paths


@pytest.fixture(scope="session")
def tiny_model(models: tuple[Path, Path]) -> Path:
    """The model that stands in for the reference."""
    return models[0]


@pytest.fixture(scope="session")
def other_model(models: tuple[Path, Path]) -> Path:
    """A model of the same shape with other weights."""
    return models[1]
