"""Command-line flags that set settings, Bittensor's own names among them."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from protocol.errors import UsageError

FLAGS: Mapping[str, tuple[str, str]] = {
    "--data-dir": ("node.data_dir", "folder for the node's own files"),
    "--wallet.name": ("wallet.name", "wallet (coldkey) name, in place of the role's own"),
    "--wallet.hotkey": ("wallet.hotkey", "hotkey name"),
    "--wallet.path": ("wallet.path", "folder of the wallets"),
    "--subtensor.network": ("chain.network", "finney, test, local or a ws:// address"),
    "--subtensor.chain_endpoint": ("chain.network", "ws:// address of a chain node; wins over the network"),
    "--netuid": ("chain.netuid", "subnet number"),
    "--axon.port": ("inference.external_port", "port that the axon advertises"),
}
"""Flag -> (dotted key, help). Of two flags for one key the later in this list wins."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config, --set and the flags of FLAGS to a parser."""
    # No defaults: a flag that is not given leaves no trace, so that a subcommand's parser, which has the same
    # flags, does not overwrite what stood before the subcommand.
    group = parser.add_argument_group("settings (over environment, .env and config.toml)")
    group.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="settings file (default: config.toml, if there)",
    )
    for flag, (key, text) in FLAGS.items():
        group.add_argument(
            flag,
            dest=flag.lstrip("-"),
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{text} ({key})",
        )
    group.add_argument(
        "--logging.debug",
        dest="logging.debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log everything (node.log_level)",
    )
    group.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=argparse.SUPPRESS,
        metavar="KEY=VALUE",
        help="any setting, as miner.target_sequence_length=50000; repeatable",
    )


def overrides_from(namespace: argparse.Namespace) -> dict[str, object]:
    """Dotted keys with the values given on the command line; --set wins over the flags.

    Raises UsageError for a --set without key or equals sign.
    """
    given = vars(namespace)
    overrides: dict[str, object] = {}
    for flag, (key, _) in FLAGS.items():
        value = given.get(flag.lstrip("-"))
        if value is not None:
            overrides[key] = value
    if given.get("logging.debug"):
        overrides["node.log_level"] = "debug"
    for assignment in given.get("assignments") or []:
        key, equals, value = str(assignment).partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {assignment}: write --set section.key=value")
        overrides[key.strip()] = value
    return overrides
