"""`quasar-node status`: what the node of this data directory last said about itself, and the round."""

import argparse
import asyncio
import json
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from node.settings import LoadedSettings
from node.settings_model import Settings
from protocol.errors import ApiUnavailable, ConfigError
from protocol.messages import CurrentRound


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "status",
        parents=parents,
        help="show what this node is doing",
        description="Show what this node is doing.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the node's last status and the current round.

    Raises:
        ConfigError: no node has run in this data directory.
        ApiUnavailable: the API does not answer.
    """
    from roles.commands.host_view import host_table, host_view
    from roles.status import STATUS_FILE

    settings = loaded.settings
    file = settings.node.data_dir / STATUS_FILE
    if not file.exists():
        raise ConfigError(
            f"{file}: no such file; no miner or validator has run with this data directory (--data-dir)"
        )
    status = json.loads(file.read_text())
    status["host"] = host_view()
    status["round"] = asyncio.run(_current_round(settings)).model_dump(mode="json")
    if args.json:
        print(json.dumps(status, indent=2))
        return 0
    table = Table("what", "value")
    host = status.pop("host")
    for key, value in status.items():
        table.add_row(key, json.dumps(value, indent=2) if isinstance(value, dict | list) else str(value))
    console = Console()
    console.print(table)
    console.print(host_table(host))
    return 0


async def _current_round(settings: Settings) -> CurrentRound:
    url = f"{settings.api.url.rstrip('/')}/get_current_round"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(url) as response,
        ):
            response.raise_for_status()
            return CurrentRound.model_validate_json(await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ApiUnavailable(f"{url} does not answer: {error or type(error).__name__}") from error
