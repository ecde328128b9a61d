"""`quasar-node db upgrade|check|backup|restore`: look after the API's database."""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from node.settings import LoadedSettings
from protocol.errors import ConfigError


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser("db", help="look after the API's database")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("upgrade", parents=parents, help="apply migrations, as a start of the API does")
    check = actions.add_parser("check", parents=parents, help="say whether it is sound and of this version")
    check.add_argument("--json", action="store_true", help="print JSON")
    backup = actions.add_parser("backup", parents=parents, help="copy SQLite, also while the API runs")
    backup.add_argument("path", type=Path, help="the file to make")
    restore = actions.add_parser("restore", parents=parents, help="put a copy in place; the API is stopped")
    restore.add_argument("path", type=Path, help="the copy")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Do what was asked; raises ConfigError when a check finds a problem."""
    from roles.api import maintenance

    settings = loaded.settings
    if args.action == "upgrade":
        print(f"the database is at revision {asyncio.run(maintenance.upgrade_configured(settings))}")
    elif args.action == "check":
        _check(args.json, asyncio.run(maintenance.check_configured(settings)))
    elif args.action == "backup":
        maintenance.back_up(settings, args.path)
        print(f"backup written to {args.path}")
    else:
        maintenance.restore(settings, args.path)
        print(f"restored from {args.path}: what was there before is kept beside it as *.replaced")
    return 0


def _check(as_json: bool, findings: Any) -> None:
    if as_json:
        json.dump(asdict(findings), sys.stdout, indent=2)
        print()
    else:
        print(
            f"{findings.kind}, revision {findings.revision}: {findings.submissions} submissions, "
            f"{findings.verdicts} verdicts"
        )
    if findings.problems:
        raise ConfigError("; ".join(findings.problems))
