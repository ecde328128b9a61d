"""The benchmark of the page runs, small, and prints what it measured."""

import json
import subprocess
import sys
from pathlib import Path


def test_benchmark_prints_its_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.page", "--submissions", "5000", "--readers", "2"]
    result = subprocess.run(
        [*command, "--seconds", "0.2"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=Path(__file__).parents[4],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["submissions"] == 5000
    assert measured["front, one reader"]["median_ms"] > 0
