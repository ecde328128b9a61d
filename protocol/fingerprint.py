"""Fingerprint of a submission's code: the same for copies that differ only in names and layout.

It is that of the five target files and of the files beside them that they import, directly or not.

Docstrings, comments, formatting and `pass` do not count. Names that the files themselves bind (variables,
parameters, functions, classes, imported names) count only by who refers to whom; names from outside (modules,
builtins, attributes, keywords of foreign functions) count as they are. Two different programs therefore do
not share a fingerprint: each one can be written down again from what is hashed.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping

from protocol.errors import SourceRejected
from protocol.forks import TARGET_FILES
from protocol.import_names import import_source, module_of, package_of, plain_module
from protocol.normal_form import NormalForm
from protocol.source_text import parse_source


def fingerprint(sources: Mapping[str, str | bytes]) -> str:
    """Hash the normal form of the five target files and of what they import of the others: hex SHA-256.

    Raises:
        SourceRejected: a target file is missing or cannot be read as Python.
    """
    trees: dict[str, ast.Module] = {}
    for name in TARGET_FILES:
        if name not in sources:
            raise SourceRejected(f"{name}: missing; a submission has {', '.join(TARGET_FILES)}")
        trees[name] = parse_source(name, sources[name])
    trees |= _imported(trees, sources)
    return hashlib.sha256("\x00".join(NormalForm(trees).tokens()).encode()).hexdigest()


def _imported(trees: Mapping[str, ast.Module], sources: Mapping[str, str | bytes]) -> dict[str, ast.Module]:
    """The other files that are imported from these, by their names."""
    # The package's own file is not the submission's: a validator lays out an empty one.
    file_of = {module_of(name): name for name in sources if name not in trees and name != "__init__.py"}
    found: dict[str, ast.Module] = {}
    unread = list(trees.items())
    while unread:
        name, tree = unread.pop()
        for module in _modules_named(name, tree):
            other = file_of.pop(module, None)
            if other is not None:
                found[other] = parse_source(other, sources[other])
                unread.append((other, found[other]))
    return dict(sorted(found.items()))


def _modules_named(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (plain_module(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = import_source(node, package_of(name))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
