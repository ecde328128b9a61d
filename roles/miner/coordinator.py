"""Commit and reveal: carries every submission from a verified candidate to the API, through crashes."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from node.bus import Bus
from node.clock import Clock
from node.logs import get_logger
from protocol.commitments import bound_commitment_hash, new_salt
from protocol.errors import ApiRefused, ApiUnavailable, ChainUnavailable, QuasarError, SourceRejected
from protocol.events import CandidateVerified, CommitmentRecorded, SubmissionRevealed
from protocol.types import BlockHeight, SubmissionId
from roles.api_client import SubnetApi, ban_s, is_final_refusal
from roles.backoff import Backoff
from roles.miner.anchoring import Anchor, is_anchored
from roles.miner.fork import Fork
from roles.miner.heights import Heights
from roles.miner.ledger import UNFINISHED, Stage, Submission, SubmissionLedger
from roles.miner.receipt import receipt_fault

TAKEN: Final = ("queued", "evaluating", "judged")
"""States of a submission whose code the API has."""
TOO_EARLY: Final = 425
EXPIRED: Final = 410
CONFLICT: Final = 409
LOOK_AT_BAN_S: Final = 3600.0

_log = get_logger(__name__)


class CommitRevealCoordinator:
    """Component that drives each submission through its stages, several side by side.

    drafted -> committed -> pushed -> revealed, or drafted -> pushed -> revealed when submitted directly.
    A stage is in the journal before the act that needs it and after the act that ends it, so that a restart
    at any moment goes on from there: a commitment is sent again as it was (the API answers with the same
    record), a reveal only after the API was asked whether it has it.
    """

    name = "commit-reveal coordinator"

    def __init__(
        self,
        *,
        ledger: SubmissionLedger,
        api: SubnetApi,
        fork: Fork,
        bus: Bus,
        clock: Clock,
        is_direct: bool,
        anchor: Anchor | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._ledger = ledger
        self._api = api
        self._fork = fork
        self._bus = bus
        self._clock = clock
        self._is_direct = is_direct
        self._anchor = anchor
        # A hotkey has one slot on chain: the next hash may replace this one only once the API has seen it.
        self._slot = asyncio.Lock()
        self._random_bytes = random_bytes
        self._candidates = bus.subscribe(CandidateVerified)
        self._heights = Heights(bus)

    async def run(self) -> None:
        """Resume what is unfinished, then take candidates until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._heights.follow(), name="heights")
            for submission in await self._ledger.all(*UNFINISHED):
                _log.info("submission resumed", **_about(submission))
                group.create_task(self._carry(submission, is_resumed=True), name=submission.key[:16])
            async for candidate in self._candidates:
                drafted = await self._draft(candidate)
                if drafted is not None:
                    group.create_task(self._carry(drafted), name=drafted.key[:16])

    async def _draft(self, candidate: CandidateVerified) -> Submission | None:
        known = await self._ledger.find_code(candidate.commit_hash, candidate.target_sequence_length)
        if known is not None and known.stage is not Stage.EXPIRED:
            _log.info("candidate is a submission already", **_about(known))
            return None
        salt, key = None, f"direct:{candidate.commit_hash}:{candidate.target_sequence_length}"
        if not self._is_direct:
            salt = new_salt(self._random_bytes)
            key = bound_commitment_hash(
                salt,
                self._api.hotkey,
                candidate.target_sequence_length,
                candidate.fork_url,
                candidate.commit_hash,
            )
        submission = await self._ledger.draft(
            key,
            salt=salt,
            is_direct=self._is_direct,
            fork_url=candidate.fork_url,
            commit_hash=candidate.commit_hash,
            target_sequence_length=candidate.target_sequence_length,
            measured_tokens_per_sec=candidate.tokens_per_sec,
            claim_tokens_per_sec=candidate.claim_tokens_per_sec,
            vram_mb=candidate.vram_mb,
        )
        _log.info("submission drafted", **_about(submission))
        return submission

    async def _carry(self, submission: Submission, *, is_resumed: bool = False) -> None:
        """Take one submission as far as it goes."""
        while submission.stage in UNFINISHED:
            if submission.stage is Stage.DRAFTED and not submission.is_direct:
                submission = await self._commit(submission)
            elif submission.stage is not Stage.PUSHED:
                submission = await self._push(submission)
            elif submission.is_direct:
                submission = await self._submit(submission)
            else:
                submission = await self._reveal(submission, may_be_sent=is_resumed)

    async def _commit(self, submission: Submission) -> Submission:
        if self._anchor is None:
            return await self._send_commitment(submission)
        async with self._slot:
            return await self._send_commitment(submission)

    async def _send_commitment(self, submission: Submission) -> Submission:
        backoff = Backoff(self._clock)
        while True:
            try:
                answer = await self._api.commit(
                    submission.key,
                    submission.target_sequence_length,
                    is_anchored=await is_anchored(self._anchor, submission.key, **_about(submission)),
                )
            except (ApiRefused, ApiUnavailable, ChainUnavailable) as error:
                if isinstance(error, ApiRefused) and is_final_refusal(error):
                    return await self._reject(submission, error)
                await self._wait(backoff, error, submission)
                continue
            submission = await self._ledger.advance(
                submission,
                Stage.COMMITTED,
                submission_id=answer.submission_id,
                reveal_block=answer.reveal_block,
                expires_block=answer.expires_block,
                receipt=answer.receipt.model_dump(mode="json"),
            )
            fault = receipt_fault(answer, submission.key)
            if fault is not None:
                _log.warning("the API's receipt would convince nobody", reason=fault, **_about(submission))
            _log.info("commitment recorded", reveal_block=answer.reveal_block, **_about(submission))
            await self._bus.publish(
                CommitmentRecorded(
                    submission_id=SubmissionId(answer.submission_id),
                    reveal_block=BlockHeight(answer.reveal_block),
                )
            )
            return submission

    async def _push(self, submission: Submission) -> Submission:
        """Make the code public, once it is due and while it still helps."""
        if submission.reveal_block is not None:
            await self._heights.reach(submission.reveal_block)
        backoff = Backoff(self._clock)
        while not self._is_past(submission):
            try:
                await self._fork.publish(submission.commit_hash)
            except SourceRejected as error:
                await backoff.wait(error, **_about(submission))
                continue
            _log.info("code pushed", fork_url=submission.fork_url, **_about(submission))
            return await self._ledger.advance(submission, Stage.PUSHED)
        return await self._expire(
            submission, f"block {submission.expires_block} came before the code could be pushed"
        )

    async def _reveal(self, submission: Submission, *, may_be_sent: bool) -> Submission:
        assert submission.submission_id is not None
        assert submission.salt is not None
        backoff = Backoff(self._clock)
        while True:
            height = self._heights.height or 0
            try:
                # An answer may have been lost: asked first, the API never gets a second reveal.
                if not (may_be_sent and await self._is_taken(submission.submission_id)):
                    may_be_sent = True
                    await self._api.reveal(
                        submission.submission_id,
                        salt=submission.salt,
                        fork_url=submission.fork_url,
                        commit_hash=submission.commit_hash,
                        tokens_per_sec=submission.claim_tokens_per_sec,
                        vram_mb=submission.vram_mb,
                    )
                return await self._revealed(submission, submission.submission_id)
            except ApiRefused as error:
                if error.status == EXPIRED:
                    return await self._expire(submission, str(error))
                if error.status == TOO_EARLY:
                    # The API sees the chain later than we do: the next block is soon enough.
                    _log.info("reveal is early for the API", reason=str(error), **_about(submission))
                    await self._heights.reach(BlockHeight(height + 1))
                    continue
                if is_final_refusal(error):
                    return await self._reject(submission, error)
                await backoff.wait(error, **_about(submission))
            except ApiUnavailable as error:
                await backoff.wait(error, **_about(submission))

    async def _submit(self, submission: Submission) -> Submission:
        backoff = Backoff(self._clock)
        while True:
            try:
                answer = await self._api.submit(
                    fork_url=submission.fork_url,
                    commit_hash=submission.commit_hash,
                    target_sequence_length=submission.target_sequence_length,
                    tokens_per_sec=submission.claim_tokens_per_sec,
                    vram_mb=submission.vram_mb,
                )
                return await self._revealed(submission, SubmissionId(answer.submission_id))
            except ApiRefused as error:
                if is_final_refusal(error) and not await self._must_wait_in_line(error):
                    return await self._reject(submission, error)
                await self._wait(backoff, error, submission)
            except ApiUnavailable as error:
                await backoff.wait(error, **_about(submission))

    async def _wait(self, backoff: Backoff, error: QuasarError, submission: Submission) -> None:
        """Wait before the next attempt; until a ban of this address ends, looking again every hour."""
        left_s = ban_s(error) if isinstance(error, ApiRefused) else None
        if left_s is None:
            await backoff.wait(error, **_about(submission))
            return
        _log.error("this address is banned, the submission waits", reason=str(error), **_about(submission))
        await self._clock.sleep(min(left_s, LOOK_AT_BAN_S))

    async def _must_wait_in_line(self, error: ApiRefused) -> bool:
        """True when a conflict is one with an own submission that waits for its verdict."""
        if error.status != CONFLICT:
            return False
        try:
            details = await self._api.submissions_of(self._api.hotkey)
        except (ApiRefused, ApiUnavailable):
            return True
        return any(detail.state in ("queued", "evaluating") for detail in details)

    async def _is_taken(self, submission_id: SubmissionId) -> bool:
        return (await self._api.submission(submission_id)).state in TAKEN

    async def _revealed(self, submission: Submission, submission_id: SubmissionId) -> Submission:
        submission = await self._ledger.advance(submission, Stage.REVEALED, submission_id=submission_id)
        _log.info("submission revealed", fork_url=submission.fork_url, **_about(submission))
        await self._bus.publish(
            SubmissionRevealed(
                submission_id=submission_id,
                fork_url=submission.fork_url,
                commit_hash=submission.commit_hash,
            )
        )
        return submission

    def _is_past(self, submission: Submission) -> bool:
        height, expires = self._heights.height, submission.expires_block
        return height is not None and expires is not None and height >= expires

    async def _expire(self, submission: Submission, reason: str) -> Submission:
        _log.error("commitment expired, it earns nothing", reason=reason, **_about(submission))
        return await self._ledger.advance(submission, Stage.EXPIRED, reason=reason)

    async def _reject(self, submission: Submission, error: ApiRefused) -> Submission:
        reason = f"{error} (HTTP {error.status})"
        _log.error("submission rejected by the API", reason=reason, **_about(submission))
        return await self._ledger.advance(submission, Stage.REJECTED, reason=reason)


def _about(submission: Submission) -> dict[str, object]:
    return {
        "submission_id": submission.submission_id,
        "commit": submission.commit_hash,
        "target_sequence_length": submission.target_sequence_length,
        "stage": submission.stage.value,
    }
