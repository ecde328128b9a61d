"""A false accusation is a defect too: honest kernels pass, whatever their schedule."""

import re

import pytest

from kernels.export import export_files
from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge
from tests.adversarial.test_attacks import wrapped

PLAIN = """
def chunk_quasar(q, k, v, beta, initial_state=None, output_final_state=False, cu_seqlens=None, **kwargs):
    batch, length, heads, dim = q.shape
    borders = [n * length for n in range(batch + 1)] if cu_seqlens is None else cu_seqlens.tolist()
    tokens = [x.reshape(-1, heads, dim).float() for x in (q, k, v)]
    norm = tokens[1].square().sum(-1)
    rate = -torch.expm1(-beta * norm) / norm
    outputs, states = [], []
    for n, (start, end) in enumerate(zip(borders, borders[1:])):
        state = q.new_zeros(heads, dim, dim).float() if initial_state is None else initial_state[n]
        for t in range(start, end):
            query, key, value = (x[t] for x in tokens)
            written = rate[t][:, None] * (value - (key[:, None] @ state)[:, 0])
            state = state + key[..., None] * written[:, None]
            outputs.append((query[:, None] @ state)[:, 0])
        states.append(state)
    return torch.stack(outputs).view(q.shape).to(q.dtype), torch.stack(states) if output_final_state else None
"""


def renamed() -> dict[str, str]:
    """Every helper by another name, one of them in a file of another name."""
    files = export_files("chunk")
    names = sorted(
        {name for text in files.values() for name in re.findall(r"^def (_\w+)", text, re.MULTILINE)}
    )
    assert len(names) > 5
    files["pieces.py"] = files.pop("segments.py")
    helper = re.compile(rf"\b({'|'.join(names)})\b")
    return {
        name: helper.sub(r"\1_of_mine", text.replace("quasar.segments", "quasar.pieces"))
        for name, text in files.items()
    } | {"segments.py": ""}


def with_other_imports() -> dict[str, str]:
    """The required imports, several in a line, and relative ones."""
    text = export_files("chunk")["chunk.py"]
    for line, other in {
        "import torch\n": "import torch, triton\n",
        "import triton\nimport triton.language as tl\n": "import triton.language as tl, functools, math\n",
        "from fla.ops.utils.index import": "from ..utils.index import",
        "from fla.ops.quasar.segments import": "from .segments import",
        "    IS_AMD,\n": "    IS_AMD, autocast_custom_bwd,\n",
        "    autocast_custom_bwd,\n": "",
    }.items():
        assert text.count(line) == 1, line
        text = text.replace(line, other)
    return {"chunk.py": text}


HONEST_FILES = {
    "PyTorch alone": lambda: {"chunk.py": export_files("chunk")["chunk.py"] + PLAIN},
    "helpers of other names": renamed,
    "imports in other lines": with_other_imports,
}
HONEST_CODE = {
    "an output with gaps": wrapped(
        "room = torch.zeros(*o.shape[:2], o.shape[2] + 1, o.shape[3], dtype=o.dtype)",
        "room[:, :, :-1] = o",
        "o = room[:, :, :-1]",
    ),
    "memory that it keeps": "_room = {}\n"
    + wrapped(
        "kept = _room.setdefault(tuple(v.shape), torch.empty_like(v)).copy_(v)",
        "o, state = _plain_chunk_quasar(q, k, kept, beta, **kwargs)",
    ),
    "threads": "torch.set_num_threads(2)",
}


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
    assert report.figures.fingerprint is not None


@pytest.mark.parametrize("name", HONEST_FILES)
def test_files_of_other_forms_pass(name: str, judge_submission: Judge) -> None:
    figures = judge_submission(replace=HONEST_FILES[name]()).figures
    assert (figures.status, figures.fault) == (Status.PASSED, Fault.NOBODY), figures.evidence


@pytest.mark.parametrize("name", HONEST_CODE)
def test_other_habits_pass(name: str, judge_submission: Judge) -> None:
    figures = judge_submission(HONEST_CODE[name]).figures
    assert (figures.status, figures.fault) == (Status.PASSED, Fault.NOBODY), figures.evidence


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
