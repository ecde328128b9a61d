"""Processes of this machine."""

from pathlib import Path


def command_lines() -> dict[int, bytes]:
    """What every process was started as, by its number; a zero byte ends each word."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes()
        except OSError:
            continue
    return found


def children(pid: int) -> list[int]:
    """The numbers of a process's children, whichever of its threads started them."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("[0-9]*/children"):
        found += map(int, path.read_text().split())
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked how."""
    try:
        # The state follows the name, which stands in parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
