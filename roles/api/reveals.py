"""POST /reveal_submission: phase 2 of commit-reveal, never limited and never blocked."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web
from sqlalchemy import Connection

from node.http_server import ApiProblem
from protocol.commitments import CommitmentForm, RevealWindow, match_commitment
from protocol.messages import RevealSubmission, RevealSubmissionAnswer
from protocol.signing import reveal_text
from protocol.types import BlockHeight
from roles.api import store_submissions as store
from roles.api.answers import model_answer
from roles.api.code import check_code_is_new, checked_fork_url, code_values, is_same_code
from roles.api.context import Api
from roles.api.database import Effect
from roles.api.store_rounds import find_round_number
from roles.api.tables import Row


class RevealHandler:
    """Takes reveals inside their window and checks them against their commitment."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def reveal(self, request: web.Request) -> web.Response:
        """Take a reveal inside its window; never limited; the same one again gives the same record."""
        api = self._api
        message, _ = await api.authentication.miner(request, RevealSubmission, reveal_text, limited=False)
        fork_url = checked_fork_url(api.settings, message.fork_url)
        row = await api.database.read(lambda connection: self._own(connection, message))
        if row.revealed_at is None:
            await self._check_window(row)
            form = _matching_form(row, message)
            current = await api.rounds.current()
            address = api.limits.address_of(request)
            row = await api.database.write(
                lambda connection: self._record_reveal(
                    connection, message, {"address": address, **code_values(message, fork_url)}, form, current
                ),
                turns=(message.miner_hotkey,),
                effect=Effect.SHOWN,
            )
        if not _is_same_reveal(row, message, fork_url):
            raise ApiProblem(409, f"submission_id {row.id} was revealed before with other values")
        answer = RevealSubmissionAnswer(
            submission_id=row.id,
            miner_hotkey=row.miner_hotkey,
            fork_url=row.fork_url,
            commit_hash=row.commit_hash,
            is_revealed=True,
            message=f"submission {row.id} is revealed and waits for evaluation",
        )
        return model_answer(answer)

    def _own(self, connection: Connection, message: RevealSubmission) -> Row:
        row = store.find_submission(connection, message.submission_id)
        if row is None:
            raise ApiProblem(404, f"there is no submission with submission_id {message.submission_id}")
        if row.miner_hotkey != message.miner_hotkey:
            raise ApiProblem(
                403,
                f"submission_id {message.submission_id} is not a submission of {message.miner_hotkey}",
            )
        return row

    async def _check_window(self, row: Row) -> None:
        window = RevealWindow(opens=row.reveal_block, expires=row.expires_block)
        height = await self._height_for(window)
        state = window.state(height)
        if state == "early":
            left = window.blocks_left(height)
            raise ApiProblem(
                425,
                f"submission_id {row.id} can be revealed from block {row.reveal_block}: {left} blocks left",
            )
        if state == "expired":
            raise ApiProblem(
                410,
                f"submission_id {row.id} expired at block {row.expires_block}, it is block {height}: "
                "send a new commitment",
            )

    async def _height_for(self, window: RevealWindow) -> BlockHeight:
        # The chain only grows: a reveal that was due at the last block seen is due now, chain or no chain.
        height = await self._api.chain.height_or_last()
        return height if window.state(height) == "open" else await self._api.chain.fresh_height()

    def _record_reveal(
        self,
        connection: Connection,
        message: RevealSubmission,
        code: Mapping[str, Any],
        form: CommitmentForm,
        current: Row,
    ) -> Row:
        row = self._own(connection, message)
        if row.revealed_at is not None:
            return row
        check_code_is_new(connection, message.miner_hotkey, message.commit_hash, row.target_sequence_length)
        now = self._api.clock.now()
        # A seed-form commitment fixes neither the code nor its owner: its time is the reveal's.
        is_bound = form is CommitmentForm.BOUND
        code_fixed_at: datetime = row.created_at if is_bound else now
        return store.update_submission(
            connection,
            row.id,
            {
                "commitment_salt": message.commitment_salt,
                **code,
                "revealed_at": now,
                "code_fixed_at": code_fixed_at,
                "round_number": _round_at(connection, code_fixed_at, current),
            },
        )


def _round_at(connection: Connection, moment: datetime, current: Row) -> int:
    if moment >= current.start_time:
        return int(current.round_number)
    return find_round_number(connection, moment) or int(current.round_number)


def _is_same_reveal(row: Row, message: RevealSubmission, fork_url: str) -> bool:
    return row.commitment_salt == message.commitment_salt and is_same_code(row, message, fork_url)


def _matching_form(row: Row, message: RevealSubmission) -> CommitmentForm:
    form = match_commitment(
        row.commitment_hash,
        salt=message.commitment_salt,
        miner_hotkey=message.miner_hotkey,
        target_sequence_length=row.target_sequence_length,
        fork_url=message.fork_url,
        commit_hash=message.commit_hash,
    )
    if form is None:
        raise ApiProblem(
            400,
            f"commitment_salt, fork_url {message.fork_url} and commit_hash {message.commit_hash} do not give "
            f"the commitment_hash {row.commitment_hash} of submission_id {row.id}",
        )
    return form
