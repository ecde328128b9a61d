"""Triton kernels that a submission has taken from the forbidden modules instead of importing them.

A copy is told by its syntax tree alone: names, comments, docstrings, decorators and layout do not count. One
that was changed is no longer found; like the rules on imports this is triage.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from protocol.normal_form import says_nothing
from protocol.source_text import parse_source

MIN_NODES: Final = 300
"""Of a kernel's syntax tree: smaller ones may be alike by chance. The forbidden kernels have 600 and more."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function for Triton's compiler."""

    name: str
    line: int
    fingerprint: str
    """Hex SHA-256 of what it does."""


def kernels_of(name: str, source: str | bytes) -> list[Kernel]:
    """List the kernels of a file that are large enough to be told apart.

    Raises:
        SourceRejected: it cannot be read as Python.
    """
    return [
        Kernel(node.name, node.lineno, hashlib.sha256("\x00".join(_tokens(node, {})).encode()).hexdigest())
        for node in _kernel_nodes(parse_source(name, source))
        if sum(1 for _ in ast.walk(node)) >= MIN_NODES
    ]


def copied_kernels(sources: Mapping[str, str], originals: Mapping[str, str]) -> list[str]:
    """List the kernels of a submission that are those of `originals`, texts by module: one sentence each.

    Raises:
        SourceRejected: a text cannot be read as Python.
    """
    known = {
        kernel.fingerprint: f"{module}.{kernel.name}"
        for module, text in originals.items()
        for kernel in kernels_of(module, text)
    }
    return [
        f"{name}: line {kernel.line}: {kernel.name} is a copy of {known[kernel.fingerprint]}, "
        "which is forbidden"
        for name in sorted(sources)
        for kernel in kernels_of(name, sources[name])
        if kernel.fingerprint in known
    ]


def _kernel_nodes(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Every kernel, but none inside another: each part of a file is read once."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and any(map(_is_jit, node.decorator_list)):
            yield node
        else:
            yield from _kernel_nodes(node)


def _is_jit(decorator: ast.expr) -> bool:
    """Tell `@triton.jit`, `@triton.jit(...)` and `@jit` from other decorators."""
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return "jit" in (getattr(decorator, "attr", None), getattr(decorator, "id", None))


def _tokens(node: ast.AST, numbers: dict[str, int]) -> Iterator[str]:
    """Write a tree down with names by the order in which they come."""
    yield type(node).__name__
    for field, value in ast.iter_fields(node):
        if field == "decorator_list":
            continue
        yield field
        for one in value if isinstance(value, list) else [value]:
            if says_nothing(one):
                continue
            if isinstance(one, ast.AST):
                yield from _tokens(one, numbers)
            elif isinstance(node, ast.Name | ast.arg | ast.FunctionDef) and isinstance(one, str):
                yield f"${numbers.setdefault(one, len(numbers))}"
            elif field not in ("type_comment", "kind"):
                yield f"{type(one).__name__} {one!r}"
