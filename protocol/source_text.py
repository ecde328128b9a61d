"""Reading of hostile source text: to a syntax tree, or to one sentence that says why not; never a crash."""

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Final

from protocol.errors import SourceRejected

MAX_SOURCE_BYTES: Final = 1_000_000
"""Of one file; far above any kernel, far below what hurts."""

MAX_DEPTH: Final = 120
"""Levels of a syntax tree; real kernels stay below 30, and everything that walks a tree recurses."""

_CODING = re.compile(r"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)
_NO_CODE = re.compile(r"[ \t\f]*(#|[\r\n]|$)")
_UTF8_NAMES: Final = frozenset({"utf-8", "utf8", "ascii", "us-ascii"})


def parse_source(name: str, source: str | bytes) -> ast.Module:
    """Parse one Python file.

    Raises:
        SourceRejected: it is too large, not UTF-8, declares another encoding (the interpreter would then read
            other code than these rules), holds null bytes, is not Python, or is nested too deeply.
    """
    if len(source) > MAX_SOURCE_BYTES:
        raise SourceRejected(f"{name}: {len(source)} bytes long; a file may have {MAX_SOURCE_BYTES}")
    text = _decoded(name, source)
    # The compiler's lines, and those of `inspect`, from which Triton reads a kernel.
    for end in (r"\r\n|\r|\n", r"\n"):
        declared = _declared_encoding(re.split(end, text, maxsplit=2)[:2])
        if declared is not None and not _is_utf8(declared):
            raise SourceRejected(f"{name}: declares the encoding {declared!r}; write the file in UTF-8")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, filename=name)
    except SyntaxError as error:
        place = "" if error.lineno is None else f"line {error.lineno}: "
        raise SourceRejected(f"{name}: {place}{error.msg}") from error
    except ValueError as error:
        raise SourceRejected(f"{name}: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise SourceRejected(f"{name}: nested too deeply to be read") from error
    if _is_deeper_than(tree, MAX_DEPTH):
        raise SourceRejected(f"{name}: nested too deeply to be read; {MAX_DEPTH} levels are allowed")
    return tree


def _declared_encoding(lines: Sequence[str]) -> str | None:
    """The name in a comment of the first two lines; in the second only if the first holds no code."""
    for line in lines:
        if declared := _CODING.match(line):
            return declared[1]
        if not _NO_CODE.match(line):
            return None
    return None


def _is_utf8(encoding: str) -> bool:
    # As the interpreter compares them: Emacs writes `utf-8-unix`.
    plain = encoding.lower().replace("_", "-")
    return plain in _UTF8_NAMES or plain.startswith("utf-8-")


def _is_deeper_than(tree: ast.Module, limit: int) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(limit):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True


def _decoded(name: str, source: str | bytes) -> str:
    if isinstance(source, bytes):
        try:
            source = source.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceRejected(f"{name}: not UTF-8 (byte {error.start}: {error.reason})") from error
    return source.removeprefix("\ufeff")
