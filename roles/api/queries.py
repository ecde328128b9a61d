"""Parameters of reading endpoints."""

from typing import Final

from aiohttp import web

from node.http_server import FieldsInvalid

MAX_DIGITS: Final = 6
MAX_SHOWN_CHARS: Final = 100


def whole_number(request: web.Request, name: str, *, default: int, highest: int) -> int:
    """The query parameter `name`, from 1 to `highest`; raises FieldsInvalid (422)."""
    text = request.query.get(name, str(default))
    # isdecimal alone would let other scripts' digits through, and int() takes signs and blanks.
    if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and 1 <= int(text) <= highest:
        return int(text)
    raise FieldsInvalid(
        [
            {
                "field": name,
                "message": f"must be a whole number from 1 to {highest}",
                "value": text[:MAX_SHOWN_CHARS],
            }
        ]
    )
