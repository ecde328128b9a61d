"""`quasar-node devnet`: a whole subnet on this machine."""

import argparse
import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from node.settings import LoadedSettings
from protocol.errors import UsageError


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "devnet", help="run a whole subnet on this machine", description="Run a whole subnet on this machine."
    )
    parser.add_argument("--short", action="store_true", help="0.1 s blocks and 3 trials")
    parser.add_argument("--keep", action="store_true", help="stay up after the weights are set")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--dir", type=Path, default=Path("devnet"), help="folder of the devnet, made anew")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until the run counts as failed")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Run the devnet; its processes take their settings from files of their own, not from `loaded`.

    Raises UsageError for a deadline that is none, and what `run_devnet` raises.
    """
    if not 0 < args.timeout < float("inf"):
        raise UsageError(f"--timeout {args.timeout}: must be a positive number of seconds")
    from roles.devnet.run import Options, run_devnet

    options = Options(
        root=args.dir,
        short=args.short,
        keep=args.keep,
        as_json=args.json,
        device=args.device,
        deadline_s=args.timeout,
    )
    return asyncio.run(_run_until_signalled(run_devnet(options), keep=args.keep))


async def _run_until_signalled(devnet: Coroutine[Any, Any, None], *, keep: bool) -> int:
    """Await the devnet; SIGINT and SIGTERM cancel it, so that its processes are stopped in every case."""
    task = asyncio.ensure_future(devnet)
    received: list[signal.Signals] = []

    def stop(signum: signal.Signals) -> None:
        received.append(signum)
        task.cancel()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop, signum)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 0 if keep and received[0] is signal.SIGINT else 128 + received[0]
    return 0
