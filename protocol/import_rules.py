"""The import rules, on the syntax tree: what `chunk.py` must import and what no file may reach.

Static rules are triage: they name the honest mistake and the plain evasion in one sentence. The sandbox, in
which the forbidden modules are stubs that raise, is what holds against the rest.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from protocol.errors import SourceRejected
from protocol.forks import TARGET_FILES
from protocol.import_names import PACKAGE, import_source, package_of
from protocol.import_reach import Reach
from protocol.shown_text import shortened
from protocol.source_text import parse_source
from protocol.verdicts import Status

REQUIRED_IN: Final = "chunk.py"

MAX_SENTENCES: Final = 20
MAX_SENTENCE_BYTES: Final = 300
"""Limits of a report, in UTF-8: it goes into a verdict, and a verdict has to fit into a request."""

REQUIRED_MODULES: Final = (
    ("torch", "torch", "import torch"),
    ("torch.nn.functional", "F", "import torch.nn.functional as F"),
    ("triton", "triton", "import triton"),
    ("triton.language", "tl", "import triton.language as tl"),
)
"""Module, the name that it must be bound to, and the line that does it."""

REQUIRED_NAMES: Final = (
    ("fla.ops.utils.index", "prepare_chunk_indices"),
    ("fla.ops.quasar.forward_substitution", "forward_substitution_kernel"),
    ("fla.utils", "IS_AMD"),
    ("fla.utils", "autocast_custom_bwd"),
    ("fla.utils", "autocast_custom_fwd"),
    ("fla.utils", "autotune_cache_kwargs"),
    ("fla.utils", "check_shared_mem"),
    ("fla.utils", "input_guard"),
)
"""Module, and the name that must be imported from it."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What the import rules say about a submission."""

    status: Status | None
    """None: clean. Otherwise `imports_forbidden`, `build_failed` or `imports_missing`, the gravest first."""
    problems: tuple[str, ...]
    """One sentence each, with file and line."""
    notes: tuple[str, ...]
    """What a person should look at; never punished by itself."""


def check_imports(sources: Mapping[str, str | bytes]) -> ImportReport:
    """Check the files of a submission, keyed by their names inside `fla/ops/quasar`.

    All five target files must be there, `chunk.py` must hold the required imports as statements that run
    when it is imported, and no file, also beside the five, may reach `fla.ops.gla` or `fla.ops.kda`.
    """
    trees: dict[str, ast.Module] = {}
    broken: list[str] = []
    for name in sorted(sources):
        try:
            trees[name] = parse_source(name, sources[name])
        except SourceRejected as error:
            broken.append(str(error))
    reach = Reach(trees)
    forbidden: list[str] = []
    notes: list[str] = []
    for name in trees:
        forbidden += reach.problems(name)
        notes += reach.notes(name)
    missing = [
        f"{name}: missing from {PACKAGE.replace('.', '/')}" for name in TARGET_FILES if name not in sources
    ]
    if REQUIRED_IN in trees:
        missing += _missing_imports(trees[REQUIRED_IN])
    return ImportReport(
        status=_gravest(forbidden, broken, missing),
        problems=_shown([*forbidden, *broken, *missing]),
        notes=_shown(notes),
    )


def _shown(sentences: list[str]) -> tuple[str, ...]:
    """Keep what a person can read: hostile files can make sentences without end."""
    shown = [shortened(text, MAX_SENTENCE_BYTES) for text in sentences[:MAX_SENTENCES]]
    if len(sentences) > MAX_SENTENCES:
        shown.append(f"and {len(sentences) - MAX_SENTENCES} more")
    return tuple(shown)


def _gravest(forbidden: list[str], broken: list[str], missing: list[str]) -> Status | None:
    if forbidden:
        return Status.IMPORTS_FORBIDDEN
    if broken:
        return Status.BUILD_FAILED
    return Status.IMPORTS_MISSING if missing else None


def _missing_imports(tree: ast.Module) -> list[str]:
    modules: set[tuple[str, str]] = set()
    names: set[tuple[str, str]] = set()
    for statement in _module_level(tree.body):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                root = alias.name.partition(".")[0]
                modules.add((alias.name, alias.asname) if alias.asname else (root, root))
        elif isinstance(statement, ast.ImportFrom):
            module = import_source(statement, package_of(REQUIRED_IN))
            for alias in statement.names:
                names.add((module, alias.name))
                modules.add((f"{module}.{alias.name}", alias.asname or alias.name))
    missing = [
        f"{REQUIRED_IN}: lacks '{line}'"
        for module, name, line in REQUIRED_MODULES
        if (module, name) not in modules
    ]
    return missing + [
        f"{REQUIRED_IN}: lacks 'from {module} import {name}'"
        for module, name in REQUIRED_NAMES
        if (module, name) not in names
    ]


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run whenever the module is imported: no branch of an `if`, no function."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.Try | ast.TryStar | ast.With):
            yield from _module_level(statement.body)
        if isinstance(statement, ast.Try | ast.TryStar):
            yield from _module_level(statement.finalbody)
