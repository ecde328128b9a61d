"""The API under test: a local chain with many miners, a database with a history, and the process itself."""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import tomli_w
from bittensor import sp_core
from sqlalchemy import Connection, insert

from node.chain.local import LocalChain, Registration
from protocol.messages import SubmitKernel
from protocol.rules import RULES_VERSION
from protocol.signing import signed
from protocol.types import Coldkey, Hotkey
from roles.api.database import Database, Effect, database_url
from roles.api.schema import upgrade
from roles.api.tables import logit_checks, submissions, verdicts

UNLIMITED: Final = 10_000_000
RANKED_MINERS: Final = 256
TARGET: Final = 1_000_000
HISTORY_ROUND_S: Final = 48 * 3600
Key = Any


def key(name: str) -> Key:
    """The hotkey of that name."""
    return sp_core.Keypair.create_from_uri(f"//{name}")


def make_chain(path: Path, miners: Sequence[Key], validator: Key) -> None:
    """A local chain on which all of them are registered; its blocks take twelve seconds."""
    neurons = [Registration(Hotkey(validator.ss58_address), Coldkey(validator.ss58_address), 5000.0, True)]
    neurons += [
        Registration(Hotkey(one.ss58_address), Coldkey(one.ss58_address), 0.0, False) for one in miners
    ]
    LocalChain.create(path, block_time_s=12.0, netuid=24, owner_hotkey=None, neurons=neurons)


def submission(miner: Key, number: int) -> bytes:
    """The body of a signed direct submission."""
    message = signed(
        miner,
        SubmitKernel,
        fork_url="https://github.com/miner/flash-linear-attention",
        commit_hash=hashlib.sha256(f"{miner.ss58_address}{number}".encode()).hexdigest()[:40],
        target_sequence_length=TARGET,
        tokens_per_sec=1000.0,
    )
    return message.model_dump_json().encode()


async def fill(url: str | None, data_dir: Path, miners: Sequence[Key], validator: Key, count: int) -> None:
    """Migrate the database and give it `count` judged submissions of the last rounds, all of them ranked."""
    database = Database(database_url(url, data_dir))
    await upgrade(database)
    now = datetime.now(UTC)
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        await database.write(_history(numbers, miners, validator, now), effect=Effect.RANKED)
    await database.close()


def _history(numbers: range, miners: Sequence[Key], validator: Key, now: datetime) -> Any:
    def work(connection: Connection) -> None:
        rows, found = [], []
        for number in numbers:
            moment = now - timedelta(days=300) + timedelta(seconds=number * 100)
            measured = 1000.0 * (1 + (number * 7919 % 1000) / 1000)
            rows.append(
                {
                    "miner_hotkey": miners[number % len(miners)].ss58_address,
                    "miner_coldkey": miners[number % len(miners)].ss58_address,
                    "target_sequence_length": TARGET,
                    "created_at": moment,
                    "fork_url": "https://github.com/miner/flash-linear-attention",
                    "commit_hash": f"{number + 1:040x}",
                    "claimed_tokens_per_sec": 1000.0,
                    "revealed_at": moment,
                    "code_fixed_at": moment,
                    "round_number": -(number // (4 * len(miners))),
                    "judged_at": moment,
                    "settled_at": moment,
                    "pooled_status": "passed",
                    "pooled_fault": "nobody",
                    "pooled_tokens_per_sec": measured,
                }
            )
            found.append((number, moment, measured))
        identities = connection.execute(
            insert(submissions).returning(submissions.c.id, sort_by_parameter_order=True), rows
        ).scalars()
        connection.execute(
            insert(verdicts),
            [
                _verdict(validator, int(identity), moment, measured)
                for identity, (_, moment, measured) in zip(identities, found, strict=True)
            ],
        )
        if numbers.start == 0:
            connection.execute(insert(logit_checks), [_logits(miner, validator, now) for miner in miners])

    return work


def _verdict(validator: Key, submission_id: int, moment: datetime, measured: float) -> dict[str, Any]:
    return {
        "submission_id": submission_id,
        "validator_hotkey": validator.ss58_address,
        "lease_id": f"history-{submission_id}",
        "attempt": 1,
        "is_final": True,
        "status": "passed",
        "fault": "nobody",
        "measured_tokens_per_sec": measured,
        "gpu": "NVIDIA H200",
        "versions": {"torch": "2.13.0"},
        "rules_version": RULES_VERSION,
        "evidence": {"reason": "outputs agree", "seeds": [1, 2, 3]},
        "signature": "00",
        "created_at": moment,
    }


def _logits(miner: Key, validator: Key, now: datetime) -> dict[str, Any]:
    return {
        "miner_hotkey": miner.ss58_address,
        "validator_hotkey": validator.ss58_address,
        "outcome": "passed",
        "reason": "",
        "checked_at": now,
        "signature": "00",
        "created_at": now,
    }


@asynccontextmanager
async def running(folder: Path, url: str | None) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """`quasar-node --role api` on what lies in the folder; gives its process and port."""
    config = folder / "config.toml"
    settings = {
        "node": {"data_dir": str(folder / "data"), "log_format": "json"},
        "chain": {"network": "local", "local_state": str(folder / "chain.sqlite")},
        "wallet": {"path": str(folder / "wallets")},
        "api": {
            "port": 0,
            "writes_per_minute_per_ip": UNLIMITED,
            "writes_per_minute_per_hotkey": UNLIMITED,
        },
    }
    config.write_text(tomli_w.dumps(settings))
    environment = {**os.environ, **({} if url is None else {"DATABASE_URL": url})}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "roles", "--role", "api", "--config", str(config),
        env=environment, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        port = await _port(process.stderr)
        drain = asyncio.create_task(process.stderr.read())
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
    await drain


async def _port(log: asyncio.StreamReader) -> int:
    said = []
    async for line in log:
        said.append(line.decode())
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("event") == "listening":
                return int(entry["port"])
    raise SystemExit("".join(said))
