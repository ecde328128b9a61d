"""Weights on the embedded local chain: set in the open, or committed encrypted and shown later."""

import sqlite3
from collections.abc import Sequence

from node.chain.local_rules import check_setter, checked_row
from node.chain.local_state import ExtrinsicRefused, LocalNeuron, LocalParameters

MAX_UNREVEALED_COMMITS = 10


def set_plain_weights(
    connection: sqlite3.Connection,
    neuron: LocalNeuron,
    parameters: LocalParameters,
    height: int,
    targets: Sequence[int],
    values: Sequence[int],
    version_key: int,
) -> None:
    """Replace a neuron's weights at `height`; raises ExtrinsicRefused."""
    if parameters.commit_reveal:
        raise ExtrinsicRefused("CommitRevealEnabled", "this subnet takes weights as encrypted commits only")
    check_setter(neuron, parameters, height)
    if version_key < parameters.version_key:
        raise ExtrinsicRefused(
            "IncorrectWeightVersionKey",
            f"version key {version_key} is older than the chain's {parameters.version_key}",
        )
    _replace_row(connection, neuron, parameters, targets, values)
    _note_update(connection, neuron, height)


def commit_weights(
    connection: sqlite3.Connection,
    neuron: LocalNeuron,
    parameters: LocalParameters,
    height: int,
    data: bytes,
    reveal_round: int,
) -> None:
    """Keep a neuron's encrypted weights; as on the real chain, the commit counts for the rate limit."""
    if not parameters.commit_reveal:
        raise ExtrinsicRefused("CommitRevealDisabled", "this subnet takes weights in the open only")
    check_setter(neuron, parameters, height)
    unrevealed = connection.execute(
        "SELECT COUNT(*) FROM weight_commits WHERE uid = ? AND block > ?",
        (neuron.uid, height - parameters.reveal_period_epochs * (parameters.tempo + 1)),
    ).fetchone()[0]
    if unrevealed >= MAX_UNREVEALED_COMMITS:
        raise ExtrinsicRefused(
            "TooManyUnrevealedCommits",
            f"{unrevealed} commits of weights wait for their reveal, {MAX_UNREVEALED_COMMITS} are allowed",
        )
    connection.execute(
        "INSERT INTO weight_commits (uid, block, reveal_round, data) VALUES (?, ?, ?, ?)",
        (neuron.uid, height, reveal_round, data),
    )
    _note_update(connection, neuron, height)


def open_oldest_commit(
    connection: sqlite3.Connection,
    neuron: LocalNeuron,
    parameters: LocalParameters,
    targets: Sequence[int],
    values: Sequence[int],
) -> None:
    """Replace the neuron's weights by those of its oldest commit; raises ExtrinsicRefused without one."""
    row = connection.execute("SELECT MIN(id) FROM weight_commits WHERE uid = ?", (neuron.uid,)).fetchone()
    if row[0] is None:
        raise ExtrinsicRefused("NoWeightsCommitFound", f"hotkey {neuron.hotkey} has no commit of weights")
    connection.execute("DELETE FROM weight_commits WHERE id = ?", (row[0],))
    _replace_row(connection, neuron, parameters, targets, values)


def unopened_commits(connection: sqlite3.Connection) -> dict[int, list[tuple[int, int]]]:
    """Commits by UID as (height, drand round), oldest first."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row in connection.execute("SELECT uid, block, reveal_round FROM weight_commits ORDER BY id"):
        found.setdefault(row["uid"], []).append((row["block"], row["reveal_round"]))
    return found


def _replace_row(
    connection: sqlite3.Connection,
    neuron: LocalNeuron,
    parameters: LocalParameters,
    targets: Sequence[int],
    values: Sequence[int],
) -> None:
    known = {row["uid"] for row in connection.execute("SELECT uid FROM neurons")}
    row = checked_row(neuron, targets, values, known, parameters)
    connection.execute("DELETE FROM weights WHERE uid = ?", (neuron.uid,))
    connection.executemany(
        "INSERT INTO weights (uid, target, value) VALUES (?, ?, ?)",
        [(neuron.uid, target, value) for target, value in row],
    )


def _note_update(connection: sqlite3.Connection, neuron: LocalNeuron, height: int) -> None:
    connection.execute("UPDATE neurons SET last_update = ? WHERE uid = ?", (height, neuron.uid))
