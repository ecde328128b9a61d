"""A false accusation is a defect too: honest kernels pass, whatever their schedule."""

import pytest

from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge


@pytest.mark.parametrize("variant", ["chunk", "chunk64", "recurrent"])
def test_honest_kernels_pass(variant: str, judge_submission: Judge) -> None:
    report = judge_submission(variant=variant, claimed=1.0)
    figures = report.figures
    assert figures.status is Status.PASSED, figures.evidence
    assert figures.fault is Fault.NOBODY
    assert figures.measured_tokens_per_sec is not None
    assert figures.measured_tokens_per_sec > 0
    assert figures.cosine_similarity is not None
    assert figures.cosine_similarity > 0.9999
    assert len(figures.evidence["trial_s"]) == 3
    assert report.fingerprint is not None


def test_an_autotuned_kernel_that_prints_passes(judge_submission: Judge) -> None:
    report = judge_submission(
        """
@triton.autotune(configs=[triton.Config({"X": 1}), triton.Config({"X": 2})], key=["n"])
@triton.jit
def _copy_kernel(source, target, n, X: tl.constexpr):
    index = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(target + index, tl.load(source + index, mask=index < n), mask=index < n)

_plain_chunk_quasar = chunk_quasar

def chunk_quasar(q, k, v, beta, **kwargs):
    print("working on", tuple(q.shape))
    copied = torch.empty_like(v)
    _copy_kernel[(triton.cdiv(v.numel(), 64),)](v.contiguous(), copied, v.numel())
    return _plain_chunk_quasar(q, k, copied, beta, **kwargs)
"""
    )
    assert report.figures.status is Status.PASSED, report.figures.evidence
    assert "working on" in report.figures.evidence["log_tail"]


def test_a_comment_about_gla_is_innocent(judge_submission: Judge) -> None:
    report = judge_submission(
        '# Unlike fla.ops.gla and fla.ops.kda this has no decay.\n"""from fla.ops.gla import x"""'
    )
    assert report.figures.status is Status.PASSED, report.figures.evidence


def test_bfloat16_arithmetic_is_accurate_enough(judge_submission: Judge) -> None:
    report = judge_submission(
        """
_plain_chunk_quasar = chunk_quasar

def chunk_quasar(q, k, v, beta, **kwargs):
    o, state = _plain_chunk_quasar(q.bfloat16(), k.bfloat16(), v.bfloat16(), beta, **kwargs)
    return o.to(q.dtype), state
"""
    )
    assert report.figures.status is Status.PASSED, report.figures.evidence
