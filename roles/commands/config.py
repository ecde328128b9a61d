"""`quasar-node config show`: every setting, redacted, with where it came from."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from node.settings import LoadedSettings, describe


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser("config", help="inspect the configuration")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", parents=parents, help="print every value with where it came from")
    show.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the settings."""
    rows = describe(loaded)
    if args.json:
        print(
            json.dumps(
                [{"key": key, "value": value, "origin": origin} for key, value, origin in rows], indent=2
            )
        )
        return 0
    table = Table("setting", "value", "from")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
    return 0
