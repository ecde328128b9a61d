"""Reads what a language model answered: a strict form, and anything else is refused with a sentence.

    SUMMARY: one line
    FILE: chunk.py
    ```python
    ...
    ```

One or more files, each whole. The text is a stranger's: it is only cut apart here, and run in the sandbox.
"""

import re
from dataclasses import dataclass
from typing import Final

from protocol.errors import InvalidMessage

MAX_ANSWER_CHARS: Final = 1_000_000
MAX_FILE_CHARS: Final = 262_144
MAX_FILES: Final = 16
MAX_SUMMARY_CHARS: Final = 300
_SHOWN_CHARS: Final = 80
_FENCE: Final = "```"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}\.py")
# Reasoning models think aloud first.
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class AnswerRejected(InvalidMessage):
    """A model's answer is not in the form that it was told; the text says where."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a model wants to change: whole files of fla/ops/quasar by name."""

    summary: str
    files: dict[str, str]


def read_answer(text: str) -> Change:
    """Return the change that an answer describes.

    Raises:
        AnswerRejected: too long, not in the form, a file name that is not allowed, a file twice, characters
            that no source file needs.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise AnswerRejected(f"the answer has {len(text):,} characters, more than {MAX_ANSWER_CHARS:,}")
    text = _THOUGHTS.sub("", text).strip().replace("\r\n", "\n")
    odd = next((char for char in text if not char.isprintable() and char not in "\n\t"), None)
    if odd is not None:
        raise AnswerRejected(f"the answer holds the character {odd!a}: plain text is expected")
    lines = text.split("\n")
    summary = _after("SUMMARY:", lines[0])[:MAX_SUMMARY_CHARS]
    files: dict[str, str] = {}
    at = 1
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        name = _after("FILE:", lines[at])
        if not _NAME.fullmatch(name):
            raise AnswerRejected(f"file name {_shown(name)} is not allowed: use one like chunk.py")
        if name in files:
            raise AnswerRejected(f"file {name} is there twice")
        if len(files) == MAX_FILES:
            raise AnswerRejected(f"the answer holds more than {MAX_FILES} files")
        files[name], at = _block(name, lines, at + 1)
    if not files:
        raise AnswerRejected("the answer holds no file: after SUMMARY: come FILE: and a fenced block")
    return Change(summary, files)


def _block(name: str, lines: list[str], at: int) -> tuple[str, int]:
    """The text of the fenced block that begins at a line, and the line after it."""
    if at >= len(lines) or lines[at].rstrip() not in (_FENCE, f"{_FENCE}python"):
        found = _shown(lines[at]) if at < len(lines) else "the end"
        raise AnswerRejected(f"after FILE: {name} a line {_FENCE}python is expected, not {found}")
    for end in range(at + 1, len(lines)):
        if lines[end].rstrip() == _FENCE:
            text = "\n".join(lines[at + 1 : end]) + "\n"
            if len(text) > MAX_FILE_CHARS:
                raise AnswerRejected(
                    f"file {name} has {len(text):,} characters, more than {MAX_FILE_CHARS:,}"
                )
            return text, end + 1
    raise AnswerRejected(f"the block of file {name} has no end: the answer was cut off, or lacks {_FENCE}")


def _after(word: str, line: str) -> str:
    if not line.startswith(word):
        raise AnswerRejected(f"a line that begins with {word} is expected, not {_shown(line)}")
    return line.removeprefix(word).strip()


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}...")
