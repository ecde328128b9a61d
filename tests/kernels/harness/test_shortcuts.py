"""The script that tries shortcuts with our kernel's roundings."""

import json
import subprocess
import sys


def test_shortcuts_are_beyond_what_is_allowed_and_our_kernel_is_not() -> None:
    command = [sys.executable, "-m", "benchmarks.referee.shortcuts", "--seq-len", "8192", "--pieces", "8"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    errors = {row["shortcut"]: row["relative_error"] / row["allowed"] for row in json.loads(printed)["rows"]}
    assert list(errors) == ["none", "sums", "24 columns", "32 columns", "40 columns", "48 columns"]
    assert 0.3 < errors.pop("none") < 0.5
    assert min(errors.values()) > 1.0
