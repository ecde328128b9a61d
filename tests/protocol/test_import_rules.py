"""The import rules: what is required, what is forbidden however it is reached, and what is innocent."""

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.forks import TARGET_FILES
from protocol.import_names import ImportNames
from protocol.import_rules import ImportReport, check_imports
from protocol.verdicts import Status

CHUNK = """
# Copyright
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from fla.ops.utils.index import prepare_chunk_indices
from fla.ops.quasar.forward_substitution import forward_substitution_kernel
from fla.utils import IS_AMD
from fla.utils import autocast_custom_bwd
from fla.utils import autocast_custom_fwd
from fla.utils import autotune_cache_kwargs
from fla.utils import check_shared_mem
from fla.utils import input_guard

BS_LIST = [32, 64] if check_shared_mem() else [16, 32]


@triton.autotune(
    configs=[triton.Config({"BT": BT}, num_warps=w) for BT in BS_LIST for w in ([2, 4] if IS_AMD else [4])],
    key=["S"],
    **autotune_cache_kwargs,
)
@triton.jit(do_not_specialize=["T"])
def kernel(q, o, T, S: tl.constexpr, BT: tl.constexpr):
    pointer = tl.make_block_ptr(q, (T, S), (S, 1), (tl.program_id(0) * BT, 0), (BT, S), (1, 0))
    tl.store(o, tl.load(pointer, boundary_check=(0, 1)).to(o.dtype.element_ty))


class ChunkQuasarFunction(torch.autograd.Function):
    @staticmethod
    @input_guard
    @autocast_custom_fwd
    def forward(ctx, q, k, v, beta, initial_state=None, **kwargs):
        return F.silu(q).eval() if q is None else getattr(torch, "float32"), None


@torch.compiler.disable
def chunk_quasar(q, k, v, beta, initial_state=None, output_final_state=False, cu_seqlens=None, **kwargs):
    indices = prepare_chunk_indices(cu_seqlens, 64) if cu_seqlens is not None else None
    return ChunkQuasarFunction.apply(q, k, v, beta, initial_state, indices)
"""

FORK = {
    "__init__.py": "from .chunk import chunk_quasar\nfrom .fused_recurrent import fused_recurrent_quasar\n",
    "chunk.py": CHUNK,
    "fused_recurrent.py": "import torch\nfrom fla.ops.quasar.gate import gate\n",
    "forward_substitution.py": "from __future__ import annotations\ndef forward_substitution_kernel(): ...\n",
    "chunk_intra_token_parallel.py": "from ..utils.index import prepare\nfrom ...utils import IS_AMD\n",
    "gate.py": "import fla.ops.utils.index\nx = fla.ops.utils.index.prepare_chunk_indices\ndef gate(): ...\n",
}


def report_on(source: str | bytes, name: str = "gate.py") -> ImportReport:
    return check_imports({**FORK, name: source})


def test_the_unmodified_fork_passes() -> None:
    assert check_imports(FORK) == ImportReport(status=None, problems=(), notes=())


# --- required ---


def test_one_combined_import_and_relative_ones_count() -> None:
    head = """
import torch, triton
from torch.nn import functional as F
from triton import language as tl
from ..utils.index import prepare_chunk_indices as p
from .forward_substitution import forward_substitution_kernel
try:
    from ...utils import (IS_AMD, autocast_custom_bwd, autocast_custom_fwd as fwd,
                          autotune_cache_kwargs, check_shared_mem)
finally:
    with open("x"):
        from fla.utils import input_guard
"""
    assert report_on(head, "chunk.py").status is None


REQUIRED_LINES = [line for line in CHUNK.splitlines() if re.match("(import|from) ", line)]


@pytest.mark.parametrize("line", REQUIRED_LINES)
@pytest.mark.parametrize(
    "instead",
    [
        "",
        "'''{}'''",
        "# {}",
        "if False:\n    {}",
        "def f():\n    {}",
        "class C:\n    {}",
        "if TYPE_CHECKING:\n    {}",
        "text = '{}'",
        "try:\n    pass\nexcept ImportError:\n    {}",
    ],
)
def test_each_required_import_must_really_run(line: str, instead: str) -> None:
    report = report_on(CHUNK.replace(line + "\n", instead.format(line) + "\n"), "chunk.py")
    assert report.status is Status.IMPORTS_MISSING
    assert report.problems == (f"chunk.py: lacks '{line}'",)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("import torch.nn.functional as F", "import torch.nn.functional as G"),
        ("import torch.nn.functional as F", "import torch.nn.functional"),
        ("import triton.language as tl", "import triton.language as language"),
        ("import torch\n", "import torch as t\n"),
        ("from fla.utils import IS_AMD", "from fla.other import IS_AMD"),
        ("from fla.utils import IS_AMD", "import fla.utils"),
        (
            "from fla.ops.utils.index import prepare_chunk_indices",
            "from fla.ops.utils import prepare_chunk_indices",
        ),
    ],
)
def test_near_misses_do_not_count(line: str, instead: str) -> None:
    assert report_on(CHUNK.replace(line, instead), "chunk.py").status is Status.IMPORTS_MISSING


def test_import_of_a_submodule_imports_its_package() -> None:
    assert report_on(CHUNK.replace("import torch\n", "import torch.cuda\n"), "chunk.py").status is None


@pytest.mark.parametrize("name", TARGET_FILES)
def test_every_target_file_must_be_there(name: str) -> None:
    report = check_imports({key: text for key, text in FORK.items() if key != name})
    assert report.status is Status.IMPORTS_MISSING
    assert report.problems == (f"{name}: missing from fla/ops/quasar",)


def test_nothing_at_all_is_missing_everything() -> None:
    report = check_imports({})
    assert report.status is Status.IMPORTS_MISSING
    assert len(report.problems) == 5


# --- forbidden ---

EVASIONS = [
    "import fla.ops.gla",
    "import fla.ops.kda.chunk as c",
    "import torch, fla.ops.gla",
    "from fla.ops.gla import chunk_gla",
    "from fla.ops.gla.chunk import *",
    "from fla.ops import gla",
    "from fla.ops import kda as honest",
    "from fla.ops import chunk_gla",
    "from fla.ops import fused_recurrent_kda as f",
    "import fla.ops\nfla.ops.chunk_kda",
    "from .. import gla",
    "from ..gla import chunk",
    "from ..kda.chunk import chunk_kda",
    "from ...ops.gla import chunk",
    "from ...ops import kda",
    "from .... import x",
    "from ....fla.ops.gla import x",
    "def f():\n    from fla.ops.gla import g",
    "if False:\n    import fla.ops.gla",
    "try:\n    import fla.ops.kda\nexcept ImportError:\n    pass",
    "import fla\nfla.ops.gla.chunk_gla()",
    "import fla.ops.utils\nfla.ops.kda",
    "import fla.ops as o\no.gla",
    "from fla import ops\nops.kda.chunk",
    "from ... import ops\nops.gla",
    "import fla as f\no = f.ops\np = o\np.gla",
    "import fla\np: object = fla.ops\np.gla",
    "import fla\nif (o := fla.ops):\n    o.gla",
    "import fla\n(o := fla.ops).gla",
    "import fla\ngetattr(fla.ops, 'gla')",
    "import fla\ngetattr(fla.ops, 'gl' + 'a')",
    "import fla\ngetattr(fla.ops, f'{\"g\"}la', None)",
    "import fla\ngetattr(getattr(fla, 'ops'), 'kda')",
    "import fla\ngetattr(fla.ops, name)",
    "import fla\ngetattr(fla.ops, 'alg'[::-1])",
    "import fla\ngetattr(fla.ops, f'{name!r}')",
    "import fla\ngetattr(fla.ops, f'{name:>3}')",
    "import fla\ng = getattr\ng(fla.ops, 'gla')",
    "import fla\ngetattr(*[fla.ops, 'gla'])",
    "from functools import reduce\nreduce(getattr, ['ops', 'gla'], 1)",
    "getattr(*pair)",
    "import fla\nf(fla)",
    "import fla\nf(m=fla.ops)",
    "import fla\nx = [fla.ops][0].gla",
    "import fla\nx.y = fla.ops",
    "import fla\na, b = fla, 1",
    "import fla\nclass A:\n    o = fla.ops\nA.o.gla",
    "class A:\n    import fla.ops as o\nA.o.gla",
    "class A:\n    if True:\n        from fla import ops\nA.ops.gla",
    "import fla\nclass A:\n    o: object = fla.ops",
    "import fla\ndef f(o=fla.ops):\n    return o.gla",
    "import fla\ndef f():\n    return fla.ops\nf().gla",
    "import fla\n(lambda: fla)().ops.gla",
    "import fla\nfor o in (fla.ops,):\n    o.gla",
    "import fla\nmatch fla:\n    case object(ops=o):\n        o.gla",
    "import fla\nvars(fla.ops)['gla']",
    "import fla\nfla.ops.__dict__['gla']",
    "import fla\nfla.ops.__getattribute__('gla')",
    "import fla\nobject.__getattribute__(fla.ops, 'gla')",
    "import fla\nsetattr(fla, 'x', 1)",
    "import fla.ops.__init__ as o\no.gla",
    "from fla.ops.__init__ import gla",
    "import torch\ntorch.anything.fla.ops.gla",
    "from . import chunk\nchunk.fla.ops.gla",
    "x.ops.gla",
    "globals()['fla'].ops.gla",
    "import fla\nglobals()['fla'].ops.gla",
    "globals()['__builtins__']",
    "locals()[name]",
    "g = globals",
    "globals().get('fla')",
    "vars()['__import__']",
    "vars",
    "import importlib",
    "import importlib.util as u",
    "from importlib import import_module",
    "from torch import importlib",
    "import torch\ntorch.importlib.import_module('fla.ops.gla')",
    "import builtins",
    "import runpy",
    "import pkgutil",
    "import pydoc",
    "import pickle",
    "import code",
    "from _frozen_importlib import __import__ as i",
    "__import__('fla.ops.gla')",
    "f = __import__",
    "exec('import fla.ops.gla')",
    "eval('1')",
    "f = eval",
    "compile('1', '', 'eval')",
    "__builtins__['eval']",
    "__loader__.load_module('x')",
    "__spec__.loader",
    "print.__self__.__import__('x')",
    "getattr(print.__self__, '__imp' + 'ort__')",
    "f.__globals__['fla']",
    "object.__subclasses__()",
    "import sys\nsys.modules['fla.ops.gla']",
    "from sys import modules",
    "import sys as s\ns.modules",
    "import sys\ngetattr(sys, 'mod' + 'ules')",
    "import sys\nsys._getframe()",
    "import sys\nsys.path.insert(0, '/')",
    "import sys\nf(sys)",
    "import sys\nsys.__dict__",
    "import torch\ntorch.sys.modules",
    "from torch import sys\nsys.modules",
    "import gc\ngc.get_objects()",
    "import ctypes\nctypes.pythonapi",
    "from typing import get_type_hints",
    "from fla.ops import *",
    "from torch import *",
    "from .chunk import *",
    "import fla.ops.ｇｌａ",
    "import fla\nfla.ops.ｋｄａ",
    "from fla.ops import ｇla",
    "\ufeffimport fla.ops.gla",
    "import \\\n    fla.ops.gla",
    "x = 1; import fla.ops.gla; y = 2",
    "with open(x) as f, g(fla) as h: pass\nimport fla",
]


@pytest.mark.parametrize("source", EVASIONS)
def test_forbidden_however_reached(source: str) -> None:
    report = report_on(source)
    assert report.status is Status.IMPORTS_FORBIDDEN
    assert all(re.match(r"gate\.py: line \d+: ", problem) for problem in report.problems)


@pytest.mark.parametrize("name", [*TARGET_FILES, "helper.py", "__init__.py", "deep/er/helper.py"])
def test_forbidden_in_any_file(name: str) -> None:
    source = FORK.get(name, "") + "\nimport fla.ops.gla\n"
    assert report_on(source, name).status is Status.IMPORTS_FORBIDDEN


def test_relative_imports_are_resolved_from_the_files_own_package() -> None:
    assert report_on("from ..gla import x", "helper.py").status is Status.IMPORTS_FORBIDDEN
    assert report_on("from ...gla import x", "deep/helper.py").status is Status.IMPORTS_FORBIDDEN
    assert report_on("from ..gla import x", "deep/helper.py").status is None
    assert report_on("from .gla import x", "helper.py").status is None


def test_names_are_followed_from_file_to_file() -> None:
    gate = "import fla.ops as tools\n"
    for user in (
        "from .gate import tools\ntools.gla",
        "from fla.ops.quasar.gate import tools as t\nt.kda",
        "from . import gate\ngate.tools.gla",
        "import fla.ops.quasar.gate as g\ng.tools.gla",
        "from . import gate\nf(gate.tools)",
    ):
        report = check_imports({**FORK, "gate.py": gate, "helper.py": user})
        assert report.status is Status.IMPORTS_FORBIDDEN, user
        assert report.problems[0].startswith("helper.py: line 2")
    assert (
        check_imports({**FORK, "gate.py": gate, "helper.py": "from .gate import tools\ntools.utils"}).status
        is None
    )


def test_a_chain_of_names_too_long_to_follow_is_refused() -> None:
    links = "\n".join(f"n{number} = n{number + 1}" for number in range(40))
    report = report_on(f"{links}\nimport fla\nn40 = fla.ops\nn0.gla\n")
    assert report.status is Status.IMPORTS_FORBIDDEN
    assert any("cannot be followed" in problem for problem in report.problems)


def test_a_name_with_too_many_meanings_is_refused() -> None:
    lines = "\n".join(f"from fla.ops.quasar import a{number} as x" for number in range(40))
    report = check_imports({**FORK, "gate.py": lines} | {f"a{number}.py": "" for number in range(40)})
    assert report.status is Status.IMPORTS_FORBIDDEN
    assert "cannot be followed" in report.problems[0]
    # Where there are no such files, nothing can be reached through them.
    assert report_on(lines).status is None


def test_paths_that_lead_nowhere_take_no_memory() -> None:
    chain = "fla" + 100 * ".fla"
    names = ImportNames({"chunk.py": ast.parse(f"import fla\n{chain}")})
    paths = [names.paths("chunk.py", node) for node in ast.walk(ast.parse(chain))]
    assert max(map(len, paths)) == 1


# --- innocent ---

INNOCENT = [
    '"""Faster than fla.ops.gla and `import fla.ops.kda`."""',
    "# import fla.ops.gla",
    "def f():\n    '''from fla.ops import gla'''",
    "import fla.ops.simple_gla",
    "from fla.ops.simple_gla import chunk_simple_gla",
    "from fla.ops import chunk_simple_gla",
    "import fla.ops.gla_like",
    "from fla.ops.delta_rule.wy_fast import recompute_w_u_fwd",
    "from .gla import x",
    "gla = 1\nkda = gla",
    "self.kda = x.gla",
    "import fla\nfla.__version__",
    "import fla\nif hasattr(fla.ops, 'x'):\n    pass",
    "import fla\ngetattr(fla, '__version__', None)",
    "import fla\nfla.ops\ndel fla",
    "import sys\nif sys.version_info >= (3, 11) and sys.platform == 'linux':\n    pass",
    "import torch\ntorch.compile(f)\nmodel.eval()\nre.compile('x')",
    "import torch\ngetattr(torch, name)",
    "getattr(x, 'y')",
    "vars(self)",
    "globals()['F']",
    "import os\nos.environ.get('X')",
    "match x:\n    case {'a': y, **rest}:\n        pass",
    "async def f():\n    async with g() as h:\n        await h",
    "x: int\ny: int = 1\n(a, b), c.d = e",
    "import warnings, math, functools, contextlib, typing, dataclasses",
    'print(r"\\d", "\\d")',
    "# -*- coding: utf-8 -*-\n#!python",
    "# -*- coding: utf-8-unix -*-",
    "#coding=UTF_8",
    '"""A docstring."""\n# positional encoding: none',
    "\ufeff# coding: ascii\nx = 1",
    "\n\n# coding: latin-1 in the third line does not count",
    "",
]


@pytest.mark.parametrize("source", INNOCENT)
def test_innocent(source: str) -> None:
    report = report_on(source)
    assert (report.status, report.problems) == (None, ())


def test_the_librarys_own_operators_are_judged_by_their_imports() -> None:
    root = Path(str(importlib.metadata.distribution("fla-core").locate_file("fla/ops")))
    judged = {True: 0, False: 0}
    for operator in ("kda", "gla", "gsa", "simple_gla", "delta_rule", "utils"):
        for path in sorted((root / operator).glob("*.py")):
            text = path.read_text()
            report = report_on(text, "helper.py")
            guilty = re.search(r"^\s*(from|import) fla\.ops\.(gla|kda)\b", text, re.MULTILINE) is not None
            assert (report.status is Status.IMPORTS_FORBIDDEN) is guilty, (path, report.problems)
            judged[guilty] += 1
    assert min(judged.values()) > 5


# --- notes ---


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("x = 'fla.ops.gla'", "a string names a forbidden module"),
        ("x = f('fla/ops/kda')", "a string names a forbidden module"),
        ("def chunk_gla_fwd_o(): ...", "defines chunk_gla_fwd_o"),
        ("class KDA: ...", "defines KDA"),
        ("async def kda(): ...", "defines kda"),
        ("import ctypes.util", "imports ctypes"),
        ("from inspect import signature", "imports inspect"),
        (f"x = {200 * 'aB3='!r}", "holds a string of 800 characters without a space"),
        (f"x = {200 * b'q'!r}", "holds 200 bytes as a constant"),
    ],
)
def test_a_likeness_is_noted_and_not_punished(source: str, note: str) -> None:
    report = report_on(source)
    assert report.status is None
    assert [text for text in report.notes if note in text] == list(report.notes)
    assert len(report.notes) == 1


# --- unreadable ---

UNREADABLE: list[tuple[str | bytes, str]] = [
    ("def f(:", "line 1"),
    ("x = (", "never closed"),
    ("x\x00y", "null"),
    ("\ud800", "surrogates"),
    (b"x = '\xff'", "not UTF-8"),
    ("#coding: utf-7\n", "utf-7"),
    ("#!/bin/sh\n# vim: set fileencoding=latin-1 :\n", "latin-1"),
    ("# a comment\r# coding: cp037\r", "cp037"),
    # Nothing to the compiler, but `inspect` ends no line there.
    ("# one\r# two\r# three, coding: utf-7\n", "utf-7"),
    ("9" * 5000, "4300"),
    ("(" * 5000 + ")" * 5000, "nested"),
    ("-" * 100_000 + "1", "nested"),
    ("a." * 20_000 + "b", "nested"),
    ("a." * 130 + "b", "120 levels"),
    ("1" + "+1" * 5000, "nested"),
    ("[" * 150 + "]" * 150, "nested"),
    ("if x:\n    pass\n" + "elif x:\n    pass\n" * 3000, "nested"),
    ("f(" * 90 + "lambda: " * 90 + "1" + ")" * 90, "nested"),
    ("x = 1\n" * 200_000, "1000000"),
    ("\tif x:\n  y", "unexpected indent"),
    ("print 1", "Missing parentheses"),
]


@pytest.mark.parametrize(("source", "reason"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_unreadable_files_fail_with_a_sentence(source: str | bytes, reason: str) -> None:
    report = report_on(source)
    assert report.status is Status.BUILD_FAILED
    assert len(report.problems) == 1
    assert report.problems[0].startswith("gate.py: ")
    assert reason in report.problems[0]
    assert len(report.problems[0]) < 500


def test_the_gravest_status_wins_and_everything_is_listed() -> None:
    report = check_imports({"chunk.py": "import fla.ops.gla", "gate.py": "def"})
    assert report.status is Status.IMPORTS_FORBIDDEN
    assert any(problem.startswith("gate.py: line 1") for problem in report.problems)
    assert "gate.py: missing from fla/ops/quasar" not in report.problems
    assert "chunk.py: lacks 'import torch'" in report.problems
    assert check_imports({"gate.py": "def"}).status is Status.BUILD_FAILED


def test_bytes_are_read_as_utf8() -> None:
    assert report_on("# é\nimport fla.ops.gla".encode()).status is Status.IMPORTS_FORBIDDEN
    assert report_on("x = 'é'".encode()).status is None


def test_a_report_stays_short() -> None:
    many = "\n".join(f"import fla.ops.gla.{'x' * 1000}{number}" for number in range(200))
    report = report_on(many)
    assert len(report.problems) == 21
    assert report.problems[-1] == "and 180 more"
    assert max(map(len, report.problems)) < 500


def test_a_large_hostile_file_comes_to_an_end() -> None:
    lines = "".join(f"a{number} = a{number + 1}.b\n" for number in range(8_000))
    assert report_on("import fla\n" + lines).status is None


@given(st.text(max_size=200))
def test_no_text_crashes_the_rules(text: str) -> None:
    check_imports(dict.fromkeys(TARGET_FILES, text))


tokens = st.sampled_from(
    [
        "import",
        "from",
        "fla",
        ".ops",
        ".gla",
        " ",
        "\n",
        "x",
        "=",
        "(",
        ")",
        "getattr",
        "'gla'",
        ",",
        ":",
        "as",
        "*",
        "class A",
        "    ",
    ]
)


@given(st.lists(tokens, max_size=30).map("".join))
def test_whatever_parses_and_imports_gla_is_found(text: str) -> None:
    report = report_on(text + "\nimport fla.ops.gla")
    assert report.status in (Status.IMPORTS_FORBIDDEN, Status.BUILD_FAILED)
