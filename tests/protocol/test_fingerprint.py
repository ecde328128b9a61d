"""Fingerprints: copies share one, programs that differ do not."""

import ast
import builtins
import keyword
import re
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SourceRejected
from protocol.fingerprint import fingerprint
from protocol.forks import TARGET_FILES

CHUNK = '''
"""Docstring."""
import torch
import triton
import triton.language as tl
from fla.ops.quasar.gate import gate_forward
from fla.utils import IS_AMD, autotune_cache_kwargs, input_guard

WARPS = [2, 4] if IS_AMD else [4, 8]


@triton.heuristics({"HAS_STATE": lambda args: args["h0"] is not None})
@triton.autotune(
    configs=[triton.Config({"BV": BV}, num_warps=w) for BV in [16, 32] for w in WARPS],
    key=["S", "BT"],
    **autotune_cache_kwargs,
)
@triton.jit
def output_kernel(
    q_ptr, o_ptr, h0, T, S: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr
):
    """Docstring."""
    row = tl.program_id(0) * BT
    for step in range(row, row + BT):
        value = tl.load(q_ptr + step * S)
        if HAS_STATE:
            value += tl.load(h0)
        tl.store(o_ptr + step * S, value, mask=step < T)


def launch(q, o, state=None, *, block=64):
    # A comment.
    T, S = q.shape

    def grid(meta):
        return (triton.cdiv(S, meta["BV"]), T)

    output_kernel[grid](q, o, h0=state, T=T, S=S, BT=block)
    total = sum(item for item in [T, S] if item)
    if (half := total // 2) > 1:
        total = half
    return gate_forward(scale=total, values=q)


class Operator(torch.autograd.Function):
    @staticmethod
    @input_guard
    def forward(ctx, q, beta):
        ctx.total = launch(q, torch.empty_like(q, dtype=torch.float32), block=32)
        try:
            return q.to(beta.dtype)
        except RuntimeError as error:
            raise ValueError(str(error)) from error


def chunk_quasar(q, k, v, beta, initial_state=None, **kwargs):
    return Operator.apply(q, beta), initial_state
'''

GATE = """
import math


def gate_forward(values, scale):
    counter = 0

    def tick():
        nonlocal counter
        counter += 1
        return counter

    match values:
        case [first, *others]:
            scale += first
        case {"a": inner, **more}:
            scale -= inner
        case whole:
            scale = whole
    return math.exp(scale) * tick()
"""

FILES = {
    "chunk.py": CHUNK,
    "fused_recurrent.py": "def fused_recurrent_quasar(q, k, v, beta, initial_state=None): return q, None\n",
    "forward_substitution.py": "def forward_substitution_kernel(L, A, BT): return L\n",
    "chunk_intra_token_parallel.py": "from .chunk import launch\ndef intra(q): launch(q, q, block=3)\n",
    "gate.py": GATE,
}
ORIGINAL = fingerprint(FILES)


def with_chunk(old: str, new: str, name: str = "chunk.py") -> dict[str, str]:
    changed = FILES[name].replace(old, new)
    assert changed != FILES[name]
    return {**FILES, name: changed}


def renamed(old: str, new: str, *names: str) -> dict[str, str]:
    files = dict(FILES)
    for name in names or TARGET_FILES:
        files[name] = re.sub(rf"\b{re.escape(old)}\b", new, files[name])
    assert files != FILES
    return files


def test_it_is_a_sha256_and_stays_the_same() -> None:
    assert re.fullmatch("[0-9a-f]{64}", ORIGINAL)
    assert fingerprint(dict(reversed(FILES.items()))) == ORIGINAL
    assert fingerprint({name: text.encode() for name, text in FILES.items()}) == ORIGINAL


def test_other_files_do_not_count() -> None:
    # Also not the package's own, which a validator lays out empty.
    package = {**FILES, "chunk.py": f"{FILES['chunk.py']}\nfrom fla.ops.quasar import gate"}
    assert fingerprint({**package, "__init__.py": "x = 1"}) == fingerprint(package)
    assert fingerprint({**FILES, "__init__.py": "x = 1", "helper.py": "("}) == ORIGINAL


# --- the same ---


def test_files_that_are_imported_count() -> None:
    thin = {**FILES, "chunk.py": "from fla.ops.quasar.part import chunk_quasar\n"}
    part = "from fla.ops.quasar import deeper\n\ndef chunk_quasar(q):\n    return deeper.run(q)\n"
    deeper = "def run(q):\n    return q + 1\n"
    one = fingerprint({**thin, "part.py": part, "deeper.py": deeper})
    assert fingerprint({**thin, "part.py": part, "deeper.py": f"# Mine.\n{deeper}"}) == one
    assert fingerprint({**thin, "part.py": part, "deeper.py": deeper.replace("1", "2")}) != one
    assert fingerprint({**thin, "part.py": part, "deeper.py": deeper, "unused.py": "x = 1"}) == one
    with pytest.raises(SourceRejected, match=r"part\.py"):
        fingerprint({**thin, "part.py": "def"})


def test_layout_comments_and_docstrings_do_not_count() -> None:
    unparsed = {name: ast.unparse(ast.parse(text)) for name, text in FILES.items()}
    assert fingerprint(unparsed) == ORIGINAL
    assert fingerprint(with_chunk('"""Docstring."""', '"""Another."""')) == ORIGINAL
    assert fingerprint(with_chunk('    """Docstring."""\n', "    pass\n")) == ORIGINAL
    assert fingerprint(with_chunk("# A comment.", "# Mine!")) == ORIGINAL
    assert (
        fingerprint(with_chunk("    T, S = q.shape", "    'just a string'\n    T, S = q.shape")) == ORIGINAL
    )
    assert fingerprint(with_chunk("WARPS =", "\n\n\nWARPS   =")) == ORIGINAL
    assert fingerprint(with_chunk("16, 32", "0x10, 3_2")) == ORIGINAL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WARPS", "Q1"),
        ("output_kernel", "my_kernel"),
        ("launch", "start"),
        ("row", "first_row"),
        ("step", "i"),
        ("total", "n"),
        ("half", "h"),
        ("item", "x"),
        ("grid", "blocks"),
        ("meta", "m"),
        ("error", "e"),
        ("block", "width"),
        ("state", "s0"),
        ("h0", "start_state"),
        ("BV", "TILE"),
        ("BT", "CHUNK"),
        ("HAS_STATE", "FLAG"),
        ("Operator", "Mine"),
        ("gate_forward", "compute"),
        ("scale", "factor"),
        ("values", "data"),
        ("counter", "ticks"),
        ("tick", "step_up"),
        ("first", "head"),
        ("others", "tail"),
        ("inner", "nested"),
        ("more", "rest"),
        ("whole", "all_of_it"),
        ("intra", "inside"),
    ],
)
def test_a_name_of_its_own_does_not_count(old: str, new: str) -> None:
    # `total` is also an attribute, which counts as it is spelled: leave it alone.
    files = renamed(old, new)
    files["chunk.py"] = files["chunk.py"].replace(f"ctx.{new}", f"ctx.{old}")
    assert fingerprint(files) == ORIGINAL


def test_imported_names_may_be_bound_to_others() -> None:
    assert fingerprint(with_chunk("input_guard\n\nWARPS", "input_guard as guard\n\nWARPS")) != ORIGINAL
    files = with_chunk("autotune_cache_kwargs, input_guard", "autotune_cache_kwargs, input_guard as guard")
    files["chunk.py"] = files["chunk.py"].replace("@input_guard", "@guard")
    assert fingerprint(files) == ORIGINAL
    files = with_chunk("import triton.language as tl", "import triton.language as lang")
    files["chunk.py"] = re.sub(r"\btl\.", "lang.", files["chunk.py"])
    assert fingerprint(files) == ORIGINAL
    assert fingerprint(with_chunk("from fla.ops.quasar.gate import", "from .gate import")) == ORIGINAL


def test_locals_may_be_renamed_in_one_function_alone() -> None:
    assert fingerprint(with_chunk("def forward(ctx, q, beta):", "def forward(context, q, beta):")) != ORIGINAL
    files = with_chunk("def forward(ctx, q, beta):", "def forward(context, q, beta):")
    files["chunk.py"] = files["chunk.py"].replace("ctx.", "context.")
    assert fingerprint(files) == ORIGINAL


# --- different ---


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("row + BT", "row - BT"),
        ("row + BT", "BT + row"),
        ("[2, 4]", "[2, 5]"),
        ("[2, 4]", "[2.0, 4]"),
        ("num_warps=w", "num_stages=w"),
        ("tl.load(q_ptr", "tl.load(o_ptr"),
        ("torch.float32", "torch.float16"),
        ("dtype=torch", "device=torch"),
        ("ctx.total", "ctx.other"),
        ("h0=state, T=T, S=S", "h0=state, T=S, S=T"),
        ("block=32", "state=32"),
        ("block=32", "block=33"),
        ("scale=total, values=q", "scale=q, values=total"),
        ("def chunk_quasar(", "def chunk_other("),
        ("initial_state=None", "other_state=None"),
        ("def forward(", "def backward("),
        ("    @staticmethod\n", ""),
        ('meta["BV"]', 'meta["BT"]'),
        ('meta["BV"]', 'meta["num_warps"]'),
        ('key=["S", "BT"]', 'key=["BT", "S"]'),
        ('key=["S", "BT"]', 'key=["S"]'),
        ("range(", "reversed("),
        ("RuntimeError", "TypeError"),
        ("from fla.utils import IS_AMD", "from fla.utils import IS_NVIDIA"),
        ("def launch(q, o,", "def launch(o, q,"),
        ("import torch\n", "import numpy as torch\n"),
        ("step < T", "step < S"),
        ('"h0"', '"T"'),
    ],
)
def test_what_a_program_does_counts(old: str, new: str) -> None:
    assert fingerprint(with_chunk(old, new)) != ORIGINAL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nonlocal counter", "global counter"),
        ("        nonlocal counter\n", "        counter = 0\n"),
        ("[first, *others]", "[*others, first]"),
        ("import math", "import cmath as math"),
        ('"a": inner', '"b": inner'),
        ("return counter", "return 0"),
    ],
)
def test_what_the_gate_does_counts(old: str, new: str) -> None:
    assert fingerprint(with_chunk(old, new, "gate.py")) != ORIGINAL


def test_the_same_text_in_another_file_counts() -> None:
    swapped = {
        **FILES,
        "gate.py": FILES["forward_substitution.py"],
        "forward_substitution.py": FILES["gate.py"],
    }
    assert fingerprint(swapped) != ORIGINAL


def pair(one: str, other: str) -> tuple[str, str]:
    """The fingerprints of two versions of the gate file."""
    first, second = (fingerprint({**FILES, "gate.py": textwrap.dedent(text)}) for text in (one, other))
    return first, second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Entry points are called by name: exchanging them is another program.
        (
            "def chunk_quasar(): return 1\ndef helper(): return 2",
            "def helper(): return 1\ndef chunk_quasar(): return 2",
        ),
        # A name bound here is not the builtin of that name.
        ("def f(x): return len(x)", "def f(len): return len(x)"),
        # Members of a class are reached as attributes.
        (
            "class A:\n    def a(self): ...\n    def b(self): self.a()",
            "class A:\n    def b(self): ...\n    def a(self): self.a()",
        ),
        # Names in a class body are not seen from its methods.
        (
            "x = 1\nclass A:\n    x = 2\n    def f(self): return x",
            "y = 1\nclass A:\n    x = 2\n    def f(self): return x",
        ),
        # Parameters passed by name to something that cannot be followed count as they are spelled.
        ("def f(a, b): return a\ng = [f]\ng[0](a=1, b=2)", "def f(b, a): return b\ng = [f]\ng[0](a=1, b=2)"),
        ("def f(a, b): return a\nh = f\nh(a=1, b=2)", "def f(b, a): return b\nh = f\nh(a=1, b=2)"),
        (
            "from functools import partial\ndef f(a, b): return a\npartial(f, a=1)",
            "from functools import partial\ndef f(b, a): return b\npartial(f, a=1)",
        ),
        ("def f(a, b): return a\nf(**{'a': 1, 'b': 2})", "def f(b, a): return b\nf(**{'a': 1, 'b': 2})"),
        # ... and so do names looked up in a namespace.
        ("a = 1\nb = 2\nglobals()['a']", "b = 1\na = 2\nglobals()['a']"),
        # ... and members of a file that is imported as a whole.
        ("from . import chunk\na = 1\nb = 2\nchunk.a", "from . import chunk\nb = 1\na = 2\nchunk.a"),
        (
            "import fla.ops.quasar.gate as g\na = 1\nb = 2\ng.a",
            "import fla.ops.quasar.gate as g\nb = 1\na = 2\ng.a",
        ),
        # Bound twice, a function is not certain.
        ("def f(a, b): return a\nf = id(f)\nf(a=1)", "def f(b, a): return b\nf = id(f)\nf(a=1)"),
        ("import a\nAssign = 1", "import a, Assign\n"),
        ("x = 1", "x = '1'"),
        ("x = 1", "x = True"),
        ("x = b'a'", "x = 'a'"),
        ("f(x, *y)", "f(x, y)"),
        ("f(x, **y)", "f(x, y)"),
        ("x = [a for a in b]", "x = {a for a in b}"),
        ("x = lambda a, b: a", "x = lambda a, b: b"),
        ("def f(a=1, *, b=2): ...", "def f(a=2, *, b=1): ..."),
        ("import a.b", "import a.c"),
        ("from . import gate", "from .. import gate"),
        ("[x for x in y]", "[y for x in y]"),
    ],
)
def test_different_programs_have_different_fingerprints(one: str, other: str) -> None:
    first, second = pair(one, other)
    assert first != second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "def f(a, *b, c=1, **d): return a, b, c, d\nf(1, c=2)",
            "def g(x, *y, z=1, **w): return x, y, z, w\ng(1, z=2)",
        ),
        (
            "x = [[a + b for a in range(b)] for b in range(3)]",
            "y = [[c + d for c in range(d)] for d in range(3)]",
        ),
        ("def f():\n    global n\n    n = 1\n    del n", "def f():\n    global m\n    m = 1\n    del m"),
        ("f = lambda a, b=1: a + b", "g = lambda x, y=1: x + y"),
        ("with open('x') as h: h.read()", "with open('x') as stream: stream.read()"),
        ("def f(a: int) -> int: ...", "def g(b: int) -> int: ..."),
        ("async def f(a):\n    async for b in a: await b", "async def g(x):\n    async for y in x: await y"),
        (
            "def d(f): return f\n@d\ndef k(A, B): ...\nk[1](A=1, B=2)",
            "def e(f): return f\n@e\ndef j(X, Y): ...\nj[1](X=1, Y=2)",
        ),
        ("[last := x for x in y]\nprint(last)", "[end := z for z in y]\nprint(end)"),
        ("class A(metaclass=M): x = 1", "class B(metaclass=M): x = 1"),
    ],
)
def test_renamed_programs_share_a_fingerprint(one: str, other: str) -> None:
    first, second = pair(one, other)
    assert first == second


def test_a_keyword_may_stay_when_its_function_takes_any() -> None:
    first, second = pair("def f(a, **more): ...\nf(1, b=2)", "def f(a, **rest): ...\nf(1, b=2)")
    assert first == second
    first, second = pair("def f(a, **more): ...\nf(1, b=2)", "def f(a, **more): ...\nf(1, c=2)")
    assert first != second


def test_files_that_import_a_name_from_each_other_in_a_circle() -> None:
    circle = {**FILES, "gate.py": "from .chunk import f\nf(a=1)", "chunk.py": "from .gate import f\nf(a=1)"}
    other = {**circle, "gate.py": "from .chunk import f\nf(b=1)"}
    assert fingerprint(circle) != fingerprint(other)


def test_what_a_call_returns_cannot_be_followed() -> None:
    first, second = pair("def f(a, b): return a\nf(1, 2)(a=1)", "def f(b, a): return b\nf(1, 2)(a=1)")
    assert first != second


# --- properties ---

LOCALS = ["row", "step", "value", "total", "half", "item", "grid", "meta"]
fresh_names = st.from_regex(r"[a-z][a-z0-9_]{3,9}", fullmatch=True).filter(
    lambda text: (
        not keyword.iskeyword(text)
        and text not in dir(builtins)
        and all(re.search(rf"\b{text}\b", source) is None for source in FILES.values())
    )
)


@given(st.lists(fresh_names, min_size=len(LOCALS), max_size=len(LOCALS), unique=True))
def test_any_consistent_renaming_keeps_the_fingerprint(names: list[str]) -> None:
    source = CHUNK
    for old, new in zip(LOCALS, names, strict=True):
        source = re.sub(rf"(?<!\.)\b{old}\b", new, source)
    assert fingerprint({**FILES, "chunk.py": source}) == ORIGINAL


@given(st.permutations(["a", "b", "c", "d"]), st.permutations(["a", "b", "c", "d"]))
def test_exactly_the_renamings_of_a_program_share_its_fingerprint(one: list[str], other: list[str]) -> None:
    # f(p, q, r, s) returns an expression over its parameters: equal up to renaming when the places agree.
    def program(parameters: list[str]) -> str:
        return f"def f({', '.join(parameters)}): return a - b * c / d"

    first, second = pair(program(one), program(other))
    assert (first == second) is (one == other)


# --- unreadable ---


@pytest.mark.parametrize("name", TARGET_FILES)
def test_a_missing_or_broken_file_is_refused(name: str) -> None:
    with pytest.raises(SourceRejected, match=re.escape(name)):
        fingerprint({key: text for key, text in FILES.items() if key != name})
    with pytest.raises(SourceRejected, match=re.escape(name)):
        fingerprint({**FILES, name: "def"})
