"""`quasar-node verify --inference URL`: the validators' logit check of a running inference server."""

import asyncio
import dataclasses
import json
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from yarl import URL

from node.settings_model import Settings
from node.wallets import hotkey_signer, load_wallet
from protocol.errors import UsageError
from protocol.types import Hotkey
from protocol.verdicts import LogitOutcome
from roles.validator.logit_client import PATH
from roles.validator.logits import LogitResult, LogitVerifier

CHALLENGES: Final = 5
FIGURES: Final = ("step", "cosine_similarity", "max_abs_diff", "times_rounding", "tokens_per_sec")


def verify_inference(url: str, settings: Settings, *, as_json: bool) -> int:
    """Challenge the server several times and print what was found; 0 when every challenge passed, else 1.

    The reference is `[inference] reference_model`; requests are signed, and answers expected to be, by the
    miner's hotkey. Raises UsageError, WalletError, ConfigError, WorkerFailed, WorkerRefused.
    """
    target = _target(url)
    section = settings.wallet
    signer = hotkey_signer(load_wallet(section, section.name or section.miner_name))
    verifier = LogitVerifier(settings, signer)

    async def challenge() -> list[LogitResult]:
        try:
            with Progress(console=Console(stderr=True)) as progress:
                bar = progress.add_task("loading the reference", total=CHALLENGES)
                await verifier.start()
                progress.update(bar, description="challenges")
                found = []
                for _ in range(CHALLENGES):
                    found.append(await verifier.check_url(Hotkey(signer.ss58_address), target))
                    progress.advance(bar)
                return found
        finally:
            await verifier.close()

    results = asyncio.run(challenge())
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
    else:
        _print(results)
    return 0 if all(result.outcome is LogitOutcome.PASSED for result in results) else 1


def _target(url: str) -> URL:
    """The address to ask. Raises UsageError."""
    try:
        parsed = URL(url)
    except ValueError as error:
        raise UsageError(f"--inference {url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"--inference {url!r}: must be like http://127.0.0.1:8001")
    if parsed.path.rstrip("/") not in ("", PATH) or parsed.query_string or parsed.fragment:
        raise UsageError(f"--inference {url!r}: leave out what follows the port")
    return parsed.with_path(PATH)


def _print(results: list[LogitResult]) -> None:
    console = Console()
    table = Table("outcome", box=SIMPLE_HEAD, pad_edge=False)
    for name in FIGURES:
        table.add_column(name.replace("_", " "), justify="right")
    for result in results:
        figures = [getattr(result, name) for name in FIGURES]
        table.add_row(result.outcome.value, *("" if value is None else f"{value:,.6g}" for value in figures))
    console.print(table)
    for reason in dict.fromkeys(result.reason for result in results):
        console.print(escape(reason), highlight=False)
