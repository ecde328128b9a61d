"""Fingerprint of a submission's five target files: the same for copies that differ only in names and layout.

Docstrings, comments, formatting and `pass` do not count. Names that the files themselves bind (variables,
parameters, functions, classes, imported names) count only by who refers to whom; names from outside (modules,
builtins, attributes, keywords of foreign functions) count as they are. Two different programs therefore do
not share a fingerprint: each one can be written down again from what is hashed.
"""

import ast
import hashlib
from collections.abc import Mapping

from protocol.errors import SourceRejected
from protocol.forks import TARGET_FILES
from protocol.normal_form import NormalForm
from protocol.source_text import parse_source


def fingerprint(sources: Mapping[str, str | bytes]) -> str:
    """Hash the normal form of the five target files: hex SHA-256. Other files do not count.

    Raises:
        SourceRejected: a target file is missing or cannot be read as Python.
    """
    trees: dict[str, ast.Module] = {}
    for name in TARGET_FILES:
        if name not in sources:
            raise SourceRejected(f"{name}: missing; a submission has {', '.join(TARGET_FILES)}")
        trees[name] = parse_source(name, sources[name])
    return hashlib.sha256("\x00".join(NormalForm(trees).tokens()).encode()).hexdigest()
