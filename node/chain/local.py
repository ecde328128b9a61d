"""The embedded local chain: a small honest state machine that several processes share as one file.

Height follows the wall clock; state exists at the head only. Refusals carry the names that the real
chain uses, so that everything above sees the same errors on both.
"""

import ipaddress
import json
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from node.chain.local_rows import insert_neuron, read_neuron, read_parameters, registered
from node.chain.local_rules import check_commitment
from node.chain.local_state import (
    FIRST_HEIGHT,
    HEIGHT_DIGITS,
    RAO_PER_TAO,
    U16_MAX,
    ExtrinsicRefused,
    LocalParameters,
    LocalState,
    Registration,
)
from node.chain.local_store import SCHEMA, LocalStore
from node.chain.local_weights import commit_weights, open_oldest_commit, set_plain_weights, unopened_commits
from protocol.errors import ConfigError
from protocol.types import BlockHeight, Hotkey, Uid

__all__ = ["ExtrinsicRefused", "LocalChain", "LocalState", "Registration"]


class LocalChain:
    """State machine over one file; every method is one transaction and may be called from any thread.

    Raises ChainUnavailable when the file is missing or locked, ExtrinsicRefused for a bad extrinsic.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._now = now
        self._store = LocalStore(path)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        block_time_s: float,
        netuid: int,
        owner_hotkey: Hotkey | None,
        neurons: Sequence[Registration],
        tempo: int = 360,
        weights_rate_limit: int = 100,
        min_stake_tao: float = 1000.0,
        min_allowed_weights: int = 1,
        max_weight: float = 1.0,
        version_key: int = 0,
        commit_reveal: bool = False,
        reveal_period_epochs: int = 1,
        now: Callable[[], float] = time.time,
    ) -> Self:
        """Write a new chain whose first block is now; the file appears complete or not at all.

        Raises ConfigError when the file exists or a value makes no sense.
        """
        if not 0 < block_time_s < float("inf"):
            raise ConfigError(f"block_time_s is {block_time_s}: it must be positive")
        parameters = LocalParameters(
            chain_id=secrets.token_hex(16),
            genesis_unix_s=now(),
            block_time_s=block_time_s,
            offset_blocks=0,
            netuid=netuid,
            owner_hotkey=owner_hotkey,
            tempo=tempo,
            weights_rate_limit=weights_rate_limit,
            min_allowed_weights=min_allowed_weights,
            max_weight_u16=round(max_weight * U16_MAX),
            min_stake_rao=round(min_stake_tao * RAO_PER_TAO),
            version_key=version_key,
            commit_reveal=int(commit_reveal),
            reveal_period_epochs=reveal_period_epochs,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_genesis(path, parameters, neurons)
        return cls.open(path, now=now)

    @classmethod
    def open(cls, path: Path, *, now: Callable[[], float] = time.time) -> Self:
        """Use an existing chain; raises ConfigError when the file is missing or something else."""
        chain = cls(path, now=now)
        chain._store.check()
        return chain

    def close(self) -> None:
        """Release the file."""
        self._store.close()

    def height(self) -> BlockHeight:
        """The head's block number."""
        with self._store.reading() as connection:
            return self._height(read_parameters(connection))

    def block_hash(self, height: int) -> str | None:
        """Deterministic hash of a block, 0x-hex; None for a block that does not exist yet."""
        with self._store.reading() as connection:
            parameters = read_parameters(connection)
        if not 0 <= height <= self._height(parameters):
            return None
        return parameters.block_hash(height)

    def find_block(self, block_hash: str) -> BlockHeight | None:
        """Height of the block with a hash; None when there is no such block (yet)."""
        with self._store.reading() as connection:
            parameters = read_parameters(connection)
        try:
            height = int(block_hash[-HEIGHT_DIGITS:], 16)
        except ValueError:
            return None
        is_known = height <= self._height(parameters) and parameters.block_hash(height) == block_hash
        return BlockHeight(height) if is_known else None

    def state(self) -> LocalState:
        """Everything on the chain, read in one snapshot."""
        with self._store.reading() as connection:
            parameters = read_parameters(connection)
            neurons = tuple(
                read_neuron(row) for row in connection.execute("SELECT * FROM neurons ORDER BY uid")
            )
            weights: dict[int, list[tuple[int, int]]] = {}
            for row in connection.execute("SELECT uid, target, value FROM weights ORDER BY uid, target"):
                weights.setdefault(row["uid"], []).append((row["target"], row["value"]))
            commitments = {
                row["hotkey"]: (row["block"], json.loads(row["fields"]))
                for row in connection.execute("SELECT hotkey, block, fields FROM commitments")
            }
            weight_commits = unopened_commits(connection)
        return LocalState(
            height=self._height(parameters),
            parameters=parameters,
            neurons=neurons,
            weights=weights,
            weight_commits=weight_commits,
            commitments=commitments,
        )

    def advance(self, blocks: int) -> BlockHeight:
        """Skip ahead (tests: a negative count goes back) and return the new height."""
        with self._store.writing() as connection:
            connection.execute("UPDATE parameters SET offset_blocks = offset_blocks + ?", (blocks,))
            return self._height(read_parameters(connection))

    def register(self, registration: Registration, *, replace_uid: int | None = None) -> Uid:
        """Register a neuron on the next free UID, or in place of the neuron that holds `replace_uid`.

        As on the real chain, a recycled UID loses its weights, axon and last update.
        """
        with self._store.writing() as connection:
            if connection.execute(
                "SELECT 1 FROM neurons WHERE hotkey = ?", (registration.hotkey,)
            ).fetchone():
                raise ExtrinsicRefused(
                    "HotKeyAlreadyRegisteredInSubNet", f"hotkey {registration.hotkey} is already registered"
                )
            height = self._height(read_parameters(connection))
            if replace_uid is None:
                uid = connection.execute("SELECT COALESCE(MAX(uid) + 1, 0) FROM neurons").fetchone()[0]
            else:
                uid = replace_uid
                if not connection.execute("SELECT 1 FROM neurons WHERE uid = ?", (uid,)).fetchone():
                    raise ExtrinsicRefused("NoNeuronIdAvailable", f"UID {uid} is not taken")
                connection.execute("DELETE FROM neurons WHERE uid = ?", (uid,))
                connection.execute("DELETE FROM weights WHERE uid = ?", (uid,))
                connection.execute("DELETE FROM weight_commits WHERE uid = ?", (uid,))
            insert_neuron(connection, uid, registration, height)
            return Uid(uid)

    def adjust(
        self, hotkey: str, *, stake_tao: float | None = None, validator_permit: bool | None = None
    ) -> None:
        """Change a neuron's stake or permit, as staking and epochs do on the real chain."""
        with self._store.writing() as connection:
            neuron = registered(connection, hotkey)
            stake_rao = neuron.stake_rao if stake_tao is None else round(stake_tao * RAO_PER_TAO)
            permit = neuron.validator_permit if validator_permit is None else validator_permit
            connection.execute(
                "UPDATE neurons SET stake_rao = ?, validator_permit = ? WHERE uid = ?",
                (stake_rao, permit, neuron.uid),
            )

    def set_weights(
        self, hotkey: str, targets: Sequence[int], values: Sequence[int], *, version_key: int = 0
    ) -> BlockHeight:
        """Replace a validator's weights (u16 each) and return the height at which they were set."""
        with self._store.writing() as connection:
            parameters = read_parameters(connection)
            height = self._height(parameters)
            neuron = registered(connection, hotkey)
            set_plain_weights(connection, neuron, parameters, height, targets, values, version_key)
            return height

    def commit_weights(self, hotkey: str, data: bytes, reveal_round: int) -> BlockHeight:
        """Keep a validator's encrypted weights and return the height; they count once `open_commit` shows
        them."""
        with self._store.writing() as connection:
            parameters = read_parameters(connection)
            height = self._height(parameters)
            neuron = registered(connection, hotkey)
            commit_weights(connection, neuron, parameters, height, data, reveal_round)
            return height

    def open_commit(self, hotkey: str, targets: Sequence[int], values: Sequence[int]) -> None:
        """Show the oldest commit's weights, as the real chain does when the drand round has come.

        The local chain follows no drand, so that the weights inside have to be told.
        """
        with self._store.writing() as connection:
            neuron = registered(connection, hotkey)
            open_oldest_commit(connection, neuron, read_parameters(connection), targets, values)

    def serve_axon(self, hotkey: str, ip: str, port: int) -> None:
        """Publish a neuron's address; unlike the real chain, loopback addresses are allowed."""
        try:
            address = ipaddress.ip_address(ip)
        except ValueError as error:
            raise ExtrinsicRefused("InvalidIpAddress", f"axon address {ip!r} is not an IP address") from error
        if address.is_unspecified:
            raise ExtrinsicRefused("InvalidIpAddress", f"axon address {ip} names no host")
        if not 0 < port <= U16_MAX:
            raise ExtrinsicRefused("InvalidPort", f"axon port {port} is not between 1 and {U16_MAX}")
        with self._store.writing() as connection:
            neuron = registered(connection, hotkey)
            connection.execute(
                "UPDATE neurons SET axon_ip = ?, axon_port = ? WHERE uid = ?",
                (str(address), port, neuron.uid),
            )

    def set_commitment(self, hotkey: str, fields: Sequence[Any]) -> BlockHeight:
        """Replace a neuron's on-chain commitment (its decoded fields) and return the height."""
        text = json.dumps(list(fields))
        check_commitment(fields)
        with self._store.writing() as connection:
            height = self._height(read_parameters(connection))
            registered(connection, hotkey)
            connection.execute(
                "INSERT OR REPLACE INTO commitments (hotkey, block, fields) VALUES (?, ?, ?)",
                (hotkey, height, text),
            )
            return height

    def _height(self, parameters: LocalParameters) -> BlockHeight:
        elapsed_blocks = int((self._now() - parameters.genesis_unix_s) / parameters.block_time_s)
        return BlockHeight(max(0, FIRST_HEIGHT + elapsed_blocks + parameters.offset_blocks))


def _write_genesis(path: Path, parameters: LocalParameters, neurons: Sequence[Registration]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
            columns = LocalParameters.__slots__
            marks = ", ".join("?" for _ in columns)
            connection.execute(
                f"INSERT INTO parameters ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
                [getattr(parameters, column) for column in columns],
            )
            for uid, registration in enumerate(neurons):
                insert_neuron(connection, uid, registration, FIRST_HEIGHT)
        except sqlite3.IntegrityError as error:
            raise ConfigError(f"the local chain's neurons are not distinct: {error}") from error
        finally:
            connection.close()
        # A log left by a deleted chain of the same name would be replayed into the new one.
        if not path.exists():
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        os.link(draft, path)
    except FileExistsError as error:
        raise ConfigError(f"local chain {str(path)!r} already exists: remove it or open it") from error
    finally:
        draft.unlink(missing_ok=True)
