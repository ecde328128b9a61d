"""How a test that runs as root has something run as another user.

That user owns the same files: so does the operator in whose name submissions would run.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from tests.requirements import missing

_OPTIONS: Final = ("--user", "--map-user=1000", "--map-group=1000", "--")


def as_ordinary_user(argv: Sequence[str]) -> list[str]:
    """The command as one of a user who is not root; skips the test where that cannot be."""
    if os.geteuid() != 0:
        return list(argv)
    unshare = [shutil.which("unshare") or "/usr/bin/unshare", *_OPTIONS]
    if subprocess.run([*unshare, "/bin/true"], capture_output=True, check=False).returncode != 0:
        missing("root cannot become another user: user namespaces are not allowed here")
    return [*unshare, *argv]
