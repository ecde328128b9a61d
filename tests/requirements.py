"""What a test needs of the machine and may not find."""

import os
from typing import NoReturn

import pytest


def missing(sentence: str) -> NoReturn:
    """Skip the test, saying what is missing; under continuous integration fail: there everything is."""
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)
