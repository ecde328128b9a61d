"""Speed of the subnet API: the real process, loaded from a second one over loopback."""

import argparse
from collections.abc import Sequence
from typing import Final

CASES: Final = ("reads", "submit", "mixed", "large")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m benchmarks.api`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--minutes", type=float, default=5.0, help="of the mixed load")
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL started for this")
    return parser.parse_args(words)
