"""POST /commit_submission: phase 1 of commit-reveal."""

from datetime import timedelta
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from node.chain.interface import Neuron
from node.http_server import ApiProblem
from protocol.commitments import reveal_window
from protocol.messages import CommitSubmission, CommitSubmissionAnswer, Receipt
from protocol.signing import commit_text, receipt_text, sign_text
from protocol.types import BlockCount, BlockHeight
from roles.api import store_submissions as store
from roles.api.answers import model_answer
from roles.api.context import Api
from roles.api.database import Effect
from roles.api.strikes import check_address
from roles.api.tables import Row

MAX_OPEN_COMMITMENTS: Final = 16
"""Unrevealed commitments of one hotkey at a time."""
RETRY_AFTER_S: Final = 60
UNSIGNED: Final = ""


class CommitHandler:
    """Takes commitments and signs receipts for them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._blocks_until_reveal = BlockCount(api.settings.api.blocks_until_reveal)
        self._window_blocks = BlockCount(api.settings.api.reveal_window_blocks)

    async def commit(self, request: web.Request) -> web.Response:
        """Take a commitment: 200 with a signed receipt; the same one again gives the same record."""
        api = self._api
        message, neuron = await api.authentication.miner(request, CommitSubmission, commit_text)
        address = api.limits.address_of(request)
        height = await self._anchored_at(message) if message.is_anchored else await api.chain.fresh_height()
        block_hash = await api.chain.block_hash(height)
        block_time_s = await api.chain.block_time_s()

        def work(connection: Connection) -> Row:
            known = store.find_commitment(connection, message.miner_hotkey, message.commitment_hash)
            if known is None:
                check_address(connection, address, message.miner_hotkey, api.clock.now())
                return self._insert_commitment(connection, message, neuron, height, block_hash)
            if known.target_sequence_length != message.target_sequence_length:
                raise ApiProblem(
                    409,
                    f"commitment_hash {message.commitment_hash} is submission {known.id} with "
                    f"target_sequence_length {known.target_sequence_length}, "
                    f"not {message.target_sequence_length}",
                )
            return known

        row = await api.database.write(work, turns=(message.miner_hotkey,), effect=Effect.SHOWN)
        return model_answer(self._commit_answer(row, block_time_s))

    async def _anchored_at(self, message: CommitSubmission) -> BlockHeight:
        """The block in which the chain took the hash: the miner's waiting time counts from there."""
        shown = await self._api.chain.commitment(message.miner_hotkey)
        if shown is None or shown.data.hex() != message.commitment_hash:
            # Too early rather than wrong: the chain may be seen later here than where the miner sees it.
            raise ApiProblem(
                425,
                f"is_anchored is true, but the chain shows no commitment {message.commitment_hash} of "
                f"{message.miner_hotkey}: wait for its block, or send the commitment without an anchor",
            )
        height = await self._api.chain.fresh_height()
        window = reveal_window(shown.height, self._blocks_until_reveal, self._window_blocks)
        if window.state(height) == "expired":
            raise ApiProblem(
                409,
                f"commitment_hash {message.commitment_hash} was anchored at block {shown.height}, could be "
                f"revealed before block {window.expires}, and it is block {height}: make a new commitment",
            )
        return shown.height

    def _insert_commitment(
        self,
        connection: Connection,
        message: CommitSubmission,
        neuron: Neuron,
        height: BlockHeight,
        block_hash: str,
    ) -> Row:
        pending = store.list_pending(connection, height, message.miner_hotkey)
        if len(pending) >= MAX_OPEN_COMMITMENTS:
            raise ApiProblem(
                429,
                f"hotkey {message.miner_hotkey} has {len(pending)} unrevealed commitments, the limit is "
                f"{MAX_OPEN_COMMITMENTS}: reveal one first",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        window = reveal_window(height, self._blocks_until_reveal, self._window_blocks)
        now = self._api.clock.now()
        row = store.insert_submission(
            connection,
            {
                "miner_hotkey": message.miner_hotkey,
                "miner_coldkey": neuron.coldkey,
                "target_sequence_length": message.target_sequence_length,
                "created_at": now,
                "commitment_hash": message.commitment_hash,
                "commit_block": height,
                "commit_block_hash": block_hash,
                "reveal_block": window.opens,
                "expires_block": window.expires,
            },
        )
        receipt = Receipt(
            submission_id=row.id,
            commitment_hash=message.commitment_hash,
            block_number=height,
            block_hash=block_hash,
            api_hotkey=self._api.signer.ss58_address,
            signature=UNSIGNED,
        )
        signature = sign_text(self._api.signer, receipt_text(receipt))
        return store.update_submission(connection, row.id, {"receipt_signature": signature})

    def _commit_answer(self, row: Row, block_time_s: float) -> CommitSubmissionAnswer:
        return CommitSubmissionAnswer(
            submission_id=row.id,
            commitment_hash=row.commitment_hash,
            reveal_block=row.reveal_block,
            expires_block=row.expires_block,
            estimated_reveal_time=row.created_at
            + timedelta(seconds=(row.reveal_block - row.commit_block) * block_time_s),
            message=(
                f"commitment taken at block {row.commit_block}: reveal it from block {row.reveal_block} "
                f"and before block {row.expires_block}"
            ),
            receipt=Receipt(
                submission_id=row.id,
                commitment_hash=row.commitment_hash,
                block_number=row.commit_block,
                block_hash=row.commit_block_hash,
                api_hotkey=self._api.signer.ss58_address,
                signature=row.receipt_signature,
            ),
        )
