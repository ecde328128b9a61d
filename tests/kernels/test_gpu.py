"""What only a GPU can show: long sequences, equal results from equal calls, every preset."""

import pytest
import torch

from kernels import chunk
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.presets import PRESETS, Preset
from kernels.reference import chunked
from tests.kernels.conftest import Draw, relative_error
from tests.kernels.tolerances import RELATIVE_ERROR

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [16_384, 65_537])
def test_long_sequences(dtype: torch.dtype, length: int, draw: Draw) -> None:
    inputs = draw(length=length, heads=4, dim=64, dtype=dtype)
    exact, _ = chunked(**inputs, dtype=torch.float64)
    o, _ = chunk.chunk_quasar(**inputs)
    again, _ = chunk.chunk_quasar(**inputs)
    assert relative_error(o, exact) <= RELATIVE_ERROR[dtype]
    assert torch.equal(o, again)


def test_token_by_token_over_a_long_sequence(draw: Draw) -> None:
    inputs = draw(length=16_385, heads=4, dim=64)
    exact, _ = chunked(**inputs, dtype=torch.float64)
    o, _ = fused_recurrent_quasar(**inputs)
    assert relative_error(o, exact) <= RELATIVE_ERROR[torch.float32]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.gpu)
@pytest.mark.parametrize("dim", [32, 64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_presets(
    preset: Preset, dim: int, dtype: torch.dtype, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("chunk_size", "block_v", "num_warps", "num_stages"):
        monkeypatch.setattr(chunk, name.upper(), getattr(preset, name))
    inputs = draw(length=300, dim=dim, dtype=dtype)
    exact, _ = chunked(**inputs, dtype=torch.float64)
    assert relative_error(chunk.chunk_quasar(**inputs)[0], exact) <= RELATIVE_ERROR[dtype]
