"""The kernels compile for GPUs that are not here, and fit into their shared memory as they are launched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.chunk import SHARED_MEMORY_BYTES

LIMITS = dict(SHARED_MEMORY_BYTES)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("capability", "limit", "shapes"),
    [
        (80, LIMITS["ampere"], ["bf16:64", "bf16:256"]),
        (89, LIMITS["ada"], ["bf16:64", "bf16:128", "fp32:128"]),
        (90, LIMITS["hopper"], ["bf16:64", "bf16:128", "fp32:64"]),
    ],
    ids=["A100", "RTX 4090", "H100"],
)
def test_kernels_fit(capability: int, limit: int, shapes: list[str], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_all", str(capability), str(limit), *shapes],
        capture_output=True,
        text=True,
        timeout=840,
        cwd=Path(__file__).parents[2],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path / "triton")},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    needed = json.loads(result.stdout)
    decoding = needed.pop("decoding")
    assert set(decoding) == {"linear", "gated", "attention"}
    assert max(decoding.values()) <= limit
    assert set(needed) == set(shapes)
    for shape, kernels in needed.items():
        assert set(kernels) == {"solve", "fold", "scan", "output"}
        for kernel, size in kernels.items():
            assert 0 < size <= limit, (shape, kernel)
