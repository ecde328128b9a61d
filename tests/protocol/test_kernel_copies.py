"""Kernels taken from forbidden modules: found under any names, and nothing else is."""

import ast
import re

import pytest

from protocol.errors import SourceRejected
from protocol.kernel_copies import MIN_NODES, copied_kernels, kernels_of

LINES = "\n".join(f"    b_{n} = tl.load(p_k + {n} * BT, mask=row < T, other=0.0) * b_beta" for n in range(25))
ORIGINAL = f'''
import triton
import triton.language as tl

@triton.jit(do_not_specialize=["T"])
def forbidden_kernel(p_k, beta, o, T, BT: tl.constexpr):
    """What it does."""
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    b_beta = tl.load(beta)
{LINES}
    tl.store(o + row, b_0 + b_1, mask=row < T)  # the end
'''
ORIGINALS = {"fla.ops.kda.gate": ORIGINAL}


def renamed(text: str) -> str:
    """The same with other names, comments, decorators and layout."""
    names = r"forbidden_kernel|p_k|beta|o|T|BT|row|b_\w+"
    text = re.sub(rf"\b({names})\b", r"my_\1", text).replace('"""What it does."""', "pass")
    text = text.replace("tl.", "lang.").replace("triton.language as tl", "triton.language as lang")
    text = text.replace("@triton.jit(", "@triton.autotune(configs=[], key=[])\n@triton.jit(")
    return ast.unparse(ast.parse(text))


def test_a_copy_is_found_under_other_names() -> None:
    copy = renamed(ORIGINAL)
    assert "forbidden_kernel(" in copy
    assert "b_beta = " in copy
    line = 1 + copy[: copy.index("def my_")].count("\n")
    assert copied_kernels({"chunk.py": copy}, ORIGINALS) == [
        f"chunk.py: line {line}: my_forbidden_kernel is a copy of fla.ops.kda.gate.forbidden_kernel, "
        "which is forbidden"
    ]


@pytest.mark.parametrize("place", ["if True:\n", "class Hidden:\n", "def make():\n"])
def test_a_copy_is_found_where_it_hides(place: str) -> None:
    kernel = ORIGINAL[ORIGINAL.index("@") :]
    inside = place + "\n".join(f"    {line}" for line in kernel.splitlines())
    assert len(copied_kernels({"helpers.py": "import triton\n", "chunk.py": inside}, ORIGINALS)) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tl.program_id(0)", "tl.program_id(1)"),
        ("other=0.0", "other=1.0"),
        ("b_0 + b_1", "b_1 + b_0"),
        ("mask=row < T)  #", "mask=row < T, cache_modifier='.cs')  #"),
        ("@triton.jit(do_not_specialize=['T'])", "@torch.compile"),
    ],
)
def test_another_kernel_is_none(old: str, new: str) -> None:
    text = ORIGINAL.replace('"', "'")
    assert old in text
    assert copied_kernels({"chunk.py": text.replace(old, new)}, ORIGINALS) == []


def test_a_small_one_may_be_alike_by_chance() -> None:
    small = "@triton.jit\ndef kernel(x):\n    return x * 1.44269504\n"
    assert kernels_of("chunk.py", small) == []
    assert copied_kernels({"chunk.py": small}, {"fla.ops.gla.chunk": small}) == []
    [kernel] = kernels_of("chunk.py", ORIGINAL)
    assert len(list(ast.walk(ast.parse(ORIGINAL)))) > MIN_NODES
    assert (kernel.name, kernel.line) == ("forbidden_kernel", 6)


def test_what_is_no_python_is_named() -> None:
    with pytest.raises(SourceRejected, match=r"chunk\.py"):
        copied_kernels({"chunk.py": "def broken(:"}, ORIGINALS)
