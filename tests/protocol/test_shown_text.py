"""Text from strangers, for people."""

from protocol.shown_text import printable, shortened


def test_strangers_text_becomes_printable() -> None:
    assert printable("a\ud800b\x1b[31m\u202e\nc") == "a?b?[31m??c"
    assert printable("a\nb", keep="\n") == "a\nb"
    printable("\ud800").encode()


def test_a_text_keeps_so_many_bytes_and_whole_characters() -> None:
    assert shortened("äöü", 6) == "äöü"
    assert shortened("äöü", 5) == "äö..."
    assert shortened("a\ud800", 1) == "a..."
