"""POST /submit_kernel: a direct submission, public from the moment it is sent."""

from aiohttp import web
from sqlalchemy import Connection

from node.chain.interface import Neuron
from node.http_server import ApiProblem
from protocol.messages import SubmitKernel, SubmitKernelAnswer
from protocol.signing import submit_text
from roles.api import store_submissions as store
from roles.api.answers import model_answer
from roles.api.code import already_submitted, checked_fork_url, code_values, is_same_code
from roles.api.context import Api
from roles.api.database import Effect
from roles.api.strikes import check_address
from roles.api.tables import Row


class SubmitHandler:
    """Takes direct submissions, one queued at a time from each hotkey."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def submit(self, request: web.Request) -> web.Response:
        """Take a direct submission; the same one again gives the same record."""
        api = self._api
        message, neuron = await api.authentication.miner(request, SubmitKernel, submit_text)
        address = api.limits.address_of(request)
        fork_url = checked_fork_url(api.settings, message.fork_url)
        current = await api.rounds.current()

        def work(connection: Connection) -> Row:
            known = store.find_code(
                connection, message.miner_hotkey, message.commit_hash, message.target_sequence_length
            )
            if known is None:
                check_address(connection, address, message.miner_hotkey, api.clock.now())
                return self._insert_direct(connection, message, neuron, fork_url, current, address)
            if known.commitment_hash is not None or not is_same_code(known, message, fork_url):
                raise already_submitted(known)
            return known

        row = await api.database.write(work, turns=(message.miner_hotkey,), effect=Effect.SHOWN)
        answer = SubmitKernelAnswer(
            submission_id=row.id,
            miner_hotkey=row.miner_hotkey,
            fork_url=row.fork_url,
            commit_hash=row.commit_hash,
            target_sequence_length=row.target_sequence_length,
            tokens_per_sec=row.claimed_tokens_per_sec,
            created_at=row.created_at,
        )
        return model_answer(answer)

    def _insert_direct(
        self,
        connection: Connection,
        message: SubmitKernel,
        neuron: Neuron,
        fork_url: str,
        current: Row,
        address: str,
    ) -> Row:
        queued = store.find_queued(connection, message.miner_hotkey)
        if queued is not None:
            raise ApiProblem(
                409,
                f"submission {queued.id} of miner_hotkey {message.miner_hotkey} is still queued: "
                "one at a time, wait for its verdict",
            )
        now = self._api.clock.now()
        return store.insert_submission(
            connection,
            {
                "miner_hotkey": message.miner_hotkey,
                "miner_coldkey": neuron.coldkey,
                "target_sequence_length": message.target_sequence_length,
                "created_at": now,
                "repo_hash": message.repo_hash,
                **code_values(message, fork_url),
                "revealed_at": now,
                "code_fixed_at": now,
                "round_number": current.round_number,
                "address": address,
            },
        )
