"""Files of judged commits on disk, within a quota."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from protocol.types import CommitHash
from roles.referee.kept_files import KeptFiles

COMMITS = [CommitHash(digit * 40) for digit in "0123"]


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    files = {"chunk.py": b"x = 1\r\n", "empty.py": b"", "other.py": bytes(range(256))}
    kept = KeptFiles(tmp_path / "sources")
    assert kept.read(COMMITS[0]) is None
    kept.keep(COMMITS[0], files)
    assert KeptFiles(tmp_path / "sources").read(COMMITS[0]) == files
    assert kept.read(COMMITS[1]) is None


def test_whatever_is_damaged_is_not_given(tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path)
    kept.keep(COMMITS[0], {"chunk.py": b"x = 1\n", "gate.py": b""})
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    for some in damaged:
        path.write_bytes(some)
        assert kept.read(COMMITS[0]) is None
        assert not path.exists()


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path, quota_bytes=2500)
    for age, commit in enumerate(COMMITS[:2]):
        kept.keep(commit, {"chunk.py": os.urandom(1000)})
        os.utime(tmp_path / f"{commit}.kept", (age, age))
    draft = tmp_path / f"{COMMITS[3]}.1"
    draft.write_bytes(b"of a referee that was killed")
    os.utime(draft, (0, 0))
    assert kept.read(COMMITS[0]) is not None
    kept.keep(COMMITS[2], {"chunk.py": os.urandom(1000)})
    assert {path.name for path in tmp_path.iterdir()} == {f"{COMMITS[0]}.kept", f"{COMMITS[2]}.kept"}


def test_what_is_removed_while_it_is_read_is_given(tmp_path: Path) -> None:
    """Another referee makes room; a pipe in the file's place is read until it is gone."""
    files = {"chunk.py": b"x = 1\n"}
    kept = KeptFiles(tmp_path)
    kept.keep(COMMITS[0], files)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(kept.read, COMMITS[0])
        with path.open("wb") as pipe:
            pipe.write(whole)
            path.unlink()
        assert reading.result(timeout=60) == files
