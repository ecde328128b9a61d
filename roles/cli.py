"""Entry point `quasar-node`: one binary, one role, and the commands around it."""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from node.logs import configure_logging, get_logger
from node.runtime import main_guard, run_role
from node.settings import LoadedSettings, add_arguments, load_settings, overrides_from
from node.worker_main import PARENT_VARIABLE, die_with_parent
from protocol.errors import UsageError
from roles.kernels_package import check_kernels_package

ROLES: Final = ("miner", "validator", "api", "inference")
COMMANDS: Final = (
    "devnet",
    "verify",
    "bench",
    "tune",
    "export",
    "history",
    "sign",
    "status",
    "doctor",
    "config",
    "db",
)
"""Each is a module of this package with `add_parser(subparsers, parents)` and `run(args, loaded) -> int`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the role or command named by `argv` and return the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    return main_guard(lambda: _dispatch(parser, args))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every role and command."""
    settings_flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    add_arguments(settings_flags)
    parser = argparse.ArgumentParser(
        prog="quasar-node",
        description="Miner, validator, API and inference server of the QUASAR subnet.",
        parents=[settings_flags],
    )
    parser.add_argument("--role", choices=ROLES, help="what this process is")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        _module(name).add_parser(subparsers, [settings_flags])
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"roles.commands.{command}")


def _dispatch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if (args.role is None) == (args.command is None):
        parser.print_usage(sys.stderr)
        raise UsageError(f"name one role (--role {'|'.join(ROLES)}) or one command ({', '.join(COMMANDS)})")
    check_kernels_package()
    config_file: Path | None = getattr(args, "config", None)
    loaded = load_settings(overrides_from(args), config_file=config_file, env=os.environ)
    if args.command is not None:
        return int(_module(args.command).run(args, loaded))
    return start_role(args.role, loaded)


def start_role(role: str, loaded: LoadedSettings) -> int:
    """Run one role until it is told to stop; returns the exit code."""
    settings = loaded.settings
    if PARENT_VARIABLE in os.environ:
        # Started by another process of this program (a devnet): not to outlive it.
        die_with_parent()
    configure_logging(settings.node.log_level, settings.node.log_format)
    # What `.env` says for workers (PYTORCH_CUDA_ALLOC_CONF) reaches them through the environment.
    os.environ.update(loaded.worker_env)
    settings.node.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    get_logger("cli").info(
        "starting", role=role, network=settings.chain.network, netuid=settings.chain.netuid, pid=os.getpid()
    )
    wiring = importlib.import_module(f"roles.{role}.wiring")
    # What was imported stays for ever: looking for garbage among it would only stop the event loop.
    gc.freeze()
    return run_role(lambda: wiring.build(settings), drain_s=settings.node.drain_s)
