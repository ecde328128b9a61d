"""How long the disk takes, measured beside the soak and inside its journal."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BLOCK: Final = bytes(4096)
EVERY_S: Final = 0.1


@contextmanager
def watched_disk(folder: Path) -> Iterator[list[float]]:
    """Seconds that writing 4 KiB and fdatasync took, ten times a second, in a thread of its own."""
    took_s: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        file = os.open(folder / "disk-watch", os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            while not is_over.wait(EVERY_S):
                began_s = time.monotonic()
                os.pwrite(file, BLOCK, 0)
                os.fdatasync(file)
                took_s.append(time.monotonic() - began_s)
        finally:
            os.close(file)

    thread = threading.Thread(target=watch, name="disk-watch")
    thread.start()
    try:
        yield took_s
    finally:
        is_over.set()
        thread.join()
