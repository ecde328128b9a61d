"""Text from strangers, for people: without what no terminal should get, and no longer than it may be."""


def printable(text: str, *, keep: str = "") -> str:
    """Replace what no terminal and no JSON encoder should get from a stranger: controls, lone surrogates."""
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)


def shortened(text: str, max_bytes: int) -> str:
    """Return the text, or so many bytes of its UTF-8 from the beginning, and "..."."""
    encoded = text.encode("utf-8", errors="replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[:max_bytes].decode("utf-8", errors="ignore") + "..."
