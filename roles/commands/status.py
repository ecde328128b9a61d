"""`quasar-node status`: what the node of this data directory last said about itself, and the round."""

import argparse
import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from rich.console import Console
from rich.table import Table

from node.settings import LoadedSettings
from node.settings_model import Settings
from protocol.errors import ApiUnavailable, ConfigError
from protocol.messages import CurrentRound

SILENT_S: Final = 30.0
"""A node writes at least every ten seconds: one that has not for so long does not run, or hangs."""
TOLD_APART: Final = ("role", "hotkey", "pid", "written_at", "height", "chain", "pending_reveals", "weights")


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "status",
        parents=parents,
        help="show what this node is doing",
        description="Show what this node is doing: heights, lag, pending reveals, last weights, the round.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the node's last status and the current round, or why the round is not known.

    Raises ConfigError when no node has run in this data directory.
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
    status["written_s_ago"] = _age_s(status["written_at"])
    try:
        status["round"] = asyncio.run(_current_round(settings)).model_dump(mode="json")
    except ApiUnavailable as error:
        # The node's own state is what one looks for when the API is away.
        status["round"] = {"unknown": str(error)}
    status["host"] = host_view()
    if args.json:
        print(json.dumps(status, indent=2))
        return 0
    table = Table("what", "value")
    host = status.pop("host")
    for what, value in _rows(status):
        table.add_row(what, value)
    console = Console()
    console.print(table)
    console.print(host_table(host))
    return 0


def _rows(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What an operator looks for first, then the rest as it stands."""
    age_s = status.pop("written_s_ago")
    yield "node", f"{status['role']} {status['hotkey']}, process {status['pid']}"
    yield "seen", f"{age_s:.0f} s ago" + (": it does not run, or hangs" if age_s > SILENT_S else "")
    chain = status.get("chain") or {"height": status["height"], "lag_s": 0, "silent_s": 0}
    yield "height", "the chain has not answered yet" if chain["height"] is None else str(chain["height"])
    yield "lag", f"next block {chain['lag_s']} s late, last answer {chain['silent_s']} s ago"
    if "pending_reveals" in status:
        yield "pending reveals", "\n".join(map(_reveal, status["pending_reveals"])) or "none"
    if "weights" in status:
        yield "last weights", _weights(status["weights"], chain["height"])
    for key, value in status.items():
        if key not in TOLD_APART:
            yield key, json.dumps(value, indent=2) if isinstance(value, dict | list) else str(value)


def _reveal(one: dict[str, Any]) -> str:
    left = "waits for its receipt" if one["blocks_left"] is None else f"{one['blocks_left']} blocks left"
    return f"submission {one['submission_id'] or '-'} ({one['stage']}): {left}, commit {one['commit'][:12]}"


def _weights(weights: dict[str, Any], height: int | None) -> str:
    updated_at = weights.get("updated_at")
    if not updated_at:
        return "never set, as far as this process knows"
    since = "" if height is None else f", {height - updated_at} blocks ago"
    shares = [f"{hotkey}: {share:.4f}" for hotkey, share in weights["weights"].items()]
    return "\n".join([f"block {updated_at}{since}", *shares])


def _age_s(written_at: str) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(written_at)).total_seconds())


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
