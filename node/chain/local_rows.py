"""Rows of the embedded local chain's file as values, and back."""

import sqlite3

from node.chain.interface import AxonAddress
from node.chain.local_state import RAO_PER_TAO, ExtrinsicRefused, LocalNeuron, LocalParameters, Registration


def insert_neuron(connection: sqlite3.Connection, uid: int, registration: Registration, height: int) -> None:
    """Put a registration on a UID that is free."""
    connection.execute(
        "INSERT INTO neurons (uid, hotkey, coldkey, stake_rao, validator_permit, registered_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (
            uid,
            registration.hotkey,
            registration.coldkey,
            round(registration.stake_tao * RAO_PER_TAO),
            registration.validator_permit,
            height,
        ),
    )


def read_parameters(connection: sqlite3.Connection) -> LocalParameters:
    """What the chain was set up with."""
    row = connection.execute("SELECT * FROM parameters").fetchone()
    return LocalParameters(**{column: row[column] for column in LocalParameters.__slots__})


def read_neuron(row: sqlite3.Row) -> LocalNeuron:
    """The neuron of a row."""
    return LocalNeuron(
        uid=row["uid"],
        hotkey=row["hotkey"],
        coldkey=row["coldkey"],
        stake_rao=row["stake_rao"],
        validator_permit=bool(row["validator_permit"]),
        registered_at=row["registered_at"],
        last_update=row["last_update"],
        axon=None if row["axon_ip"] is None else AxonAddress(row["axon_ip"], row["axon_port"]),
    )


def registered(connection: sqlite3.Connection, hotkey: str) -> LocalNeuron:
    """The neuron of a hotkey; raises ExtrinsicRefused when it is not registered."""
    row = connection.execute("SELECT * FROM neurons WHERE hotkey = ?", (hotkey,)).fetchone()
    if row is None:
        raise ExtrinsicRefused("HotKeyNotRegisteredInSubNet", f"hotkey {hotkey} is not registered")
    return read_neuron(row)
