"""The subnet API as miners and validators call it: typed, with every body built and signed here."""

from datetime import datetime
from typing import Any, TypeVar

from node.clock import Clock
from node.http_client import HttpClient
from node.logs import get_logger
from node.settings_model import Settings
from protocol.errors import ApiRefused, ApiUnavailable, ConfigError
from protocol.messages import (
    ApiInfo,
    Benchmarks,
    CommitSubmission,
    CommitSubmissionAnswer,
    Comparison,
    ComparisonAnswer,
    CurrentRound,
    Heartbeat,
    HeartbeatAnswer,
    Leaderboard,
    LeaseAnswer,
    LogitCheck,
    LogitCheckAnswer,
    PendingReveals,
    RevealSubmission,
    RevealSubmissionAnswer,
    SubmissionDetail,
    SubmitKernel,
    SubmitKernelAnswer,
    Verdict,
    VerdictAnswer,
)
from protocol.rules import RULES_VERSION
from protocol.signing import Signer, signed, signed_as_now
from protocol.types import CommitHash, Hotkey, LeaseId, SubmissionId

ATTEMPT_S = 10.0
CALL_S = 30.0
"""A whole call with its retries; callers that must not give up call again."""

Judged = TypeVar("Judged", Verdict, Comparison, LogitCheck)
"""What a validator keeps until the API has it."""

_log = get_logger(__name__)


def is_final_refusal(error: ApiRefused) -> bool:
    """True when sending the same again cannot help: a 4xx that is not about time, load or a ban."""
    return 400 <= error.status < 500 and error.status not in (408, 425, 429) and ban_s(error) is None


def ban_s(error: ApiRefused) -> float | None:
    """Seconds that a ban of the caller's address has left; None when the refusal is about something else.

    Of the refusals for who asks (403) a ban alone says when to ask again.
    """
    return error.retry_after_s if error.status == 403 else None


class SignedByAnother(ApiRefused):
    """Another hotkey, which this node had before, has signed it: the API would refuse it each time."""

    def __init__(self, signer: str, own: str) -> None:
        super().__init__(403, f"hotkey {signer} has signed it, and this node's is {own} now")


def is_about_content(error: ApiRefused) -> bool:
    """True when the refusal is about what was sent, and not about who sent it (a permit may come back)."""
    is_about_sender = error.status in (401, 403) and not isinstance(error, SignedByAnother)
    return is_final_refusal(error) and not is_about_sender


class SubnetApi:
    """Calls the API with one hotkey; `close` it at the end.

    Every method raises ApiRefused (4xx) and ApiUnavailable (no usable answer within about half a minute).
    """

    def __init__(self, http: HttpClient, receiver: "Receiver", signer: Signer) -> None:
        self._http = http
        self._receiver = receiver
        self._signer = signer

    @property
    def hotkey(self) -> Hotkey:
        """The hotkey that signs."""
        return Hotkey(self._signer.ss58_address)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()
        await self._receiver.close()

    # --- miners

    async def commit(
        self, commitment_hash: str, target_sequence_length: int, *, is_anchored: bool = False
    ) -> CommitSubmissionAnswer:
        """Send a commitment; the same one again gives the same answer. `is_anchored`: the chain shows it."""
        body = signed(
            self._signer,
            CommitSubmission,
            commitment_hash=commitment_hash,
            target_sequence_length=target_sequence_length,
            is_anchored=is_anchored,
        )
        return await self._http.request(
            "POST", "/commit_submission", body=body, answer=CommitSubmissionAnswer
        )

    async def reveal(
        self,
        submission_id: SubmissionId,
        *,
        salt: str,
        fork_url: str,
        commit_hash: CommitHash,
        tokens_per_sec: float,
        vram_mb: float | None = None,
        benchmarks: Benchmarks | None = None,
    ) -> RevealSubmissionAnswer:
        """Open a commitment, in one attempt: whoever got no answer must ask before sending it again."""
        body = signed(
            self._signer,
            RevealSubmission,
            submission_id=submission_id,
            commitment_salt=salt,
            fork_url=fork_url,
            commit_hash=commit_hash,
            tokens_per_sec=tokens_per_sec,
            vram_mb=vram_mb,
            benchmarks=benchmarks,
        )
        return await self._http.request(
            "POST", "/reveal_submission", body=body, answer=RevealSubmissionAnswer, is_retried=False
        )

    async def submit(
        self,
        *,
        fork_url: str,
        commit_hash: CommitHash,
        target_sequence_length: int,
        tokens_per_sec: float,
        vram_mb: float | None = None,
        benchmarks: Benchmarks | None = None,
    ) -> SubmitKernelAnswer:
        """Submit directly; the same again gives the same answer."""
        body = signed(
            self._signer,
            SubmitKernel,
            fork_url=fork_url,
            commit_hash=commit_hash,
            target_sequence_length=target_sequence_length,
            tokens_per_sec=tokens_per_sec,
            vram_mb=vram_mb,
            benchmarks=benchmarks,
        )
        return await self._http.request("POST", "/submit_kernel", body=body, answer=SubmitKernelAnswer)

    # --- everybody

    async def info(self) -> ApiInfo:
        """To whom requests are bound, and the limits. Raises ConfigError for the API of another subnet."""
        return await self._receiver.info()

    async def submission(self, submission_id: SubmissionId) -> SubmissionDetail:
        """One submission with its verdicts."""
        return await self._http.request("GET", f"/submissions/{submission_id}", answer=SubmissionDetail)

    async def submissions_of(self, hotkey: Hotkey, *, limit: int = 50) -> list[SubmissionDetail]:
        """The newest submissions of a hotkey."""
        return await self._http.request(
            "GET", "/submissions", params={"hotkey": hotkey, "limit": limit}, answer=list[SubmissionDetail]
        )

    async def pending_reveals(self) -> PendingReveals:
        """Commitments that wait for their reveal."""
        return await self._http.request("GET", "/pending_reveals", answer=PendingReveals)

    async def current_round(self) -> CurrentRound:
        """The open round."""
        return await self._http.request("GET", "/get_current_round", answer=CurrentRound)

    async def leaderboard(self) -> Leaderboard:
        """The ranking over all verdicts."""
        return await self._http.request("GET", "/leaderboard", answer=Leaderboard)

    # --- validators

    async def lease(self) -> LeaseAnswer | None:
        """Take the next submission to judge; None when the queue is empty."""
        return await self._http.request_optional(
            "POST", "/evaluations/lease", answer=LeaseAnswer, signed=True
        )

    async def heartbeat(self, submission_id: SubmissionId, lease_id: LeaseId) -> datetime:
        """Keep a lease alive; returns when it now ends."""
        answer = await self._http.request(
            "POST",
            f"/evaluations/{submission_id}/heartbeat",
            body=Heartbeat(lease_id=lease_id),
            answer=HeartbeatAnswer,
            signed=True,
        )
        return answer.expires_at

    def sign_verdict(self, **fields: Any) -> Verdict:
        """Build a verdict of this hotkey; `fields`: those of `Verdict` but signer and signature."""
        return signed(self._signer, Verdict, **fields)

    async def send_verdict(self, verdict: Verdict) -> VerdictAnswer:
        """Hand in a verdict; the same again gives the same answer."""
        return await self._http.request(
            "POST",
            f"/evaluations/{verdict.submission_id}/verdict",
            body=self._as_now(verdict),
            answer=VerdictAnswer,
            signed=True,
        )

    def sign_comparison(self, **fields: Any) -> Comparison:
        """Build a re-run of this hotkey; `fields` as for `sign_verdict`."""
        return signed(self._signer, Comparison, **fields)

    async def send_comparison(self, comparison: Comparison) -> ComparisonAnswer:
        """Hand in a re-run; the same again gives the same answer."""
        return await self._http.request(
            "POST", "/comparisons", body=self._as_now(comparison), answer=ComparisonAnswer, signed=True
        )

    def sign_logit_check(self, **fields: Any) -> LogitCheck:
        """Build a logit check of this hotkey; `fields` as for `sign_verdict`."""
        return signed(self._signer, LogitCheck, **fields)

    async def send_logit_check(self, check: LogitCheck) -> LogitCheckAnswer:
        """Hand in a logit check; the same again gives the same answer."""
        return await self._http.request(
            "POST", "/record_verification", body=self._as_now(check), answer=LogitCheckAnswer, signed=True
        )

    def _as_now(self, message: Judged) -> Judged:
        """What was kept for a while, maybe by an earlier process or build. Raises SignedByAnother."""
        if message.validator_hotkey != self.hotkey:
            raise SignedByAnother(message.validator_hotkey, self.hotkey)
        return signed_as_now(self._signer, message)


class Receiver:
    """Finds the hotkey that signed requests are bound to, and asks again after a while.

    An API that was set up anew has another hotkey; requests bound to the old one are refused with 401.
    """

    MAX_AGE_S = 60.0

    def __init__(self, http: HttpClient, clock: Clock, *, netuid: int) -> None:
        self._http = http
        self._clock = clock
        self._netuid = netuid
        self._hotkey: str | None = None
        self._asked_at_s = 0.0
        self._was_right = False

    async def __call__(self) -> str:
        """The API's hotkey. Raises as `info`."""
        if self._hotkey is None or self._clock.monotonic() - self._asked_at_s > self.MAX_AGE_S:
            info = await self.info()
            if info.rules_version != RULES_VERSION:
                _log.warning(
                    "the API follows other rules: one of the two needs an upgrade",
                    api_rules_version=info.rules_version,
                    own_rules_version=RULES_VERSION,
                )
            self._hotkey = info.hotkey
            self._asked_at_s = self._clock.monotonic()
        return self._hotkey

    async def info(self) -> ApiInfo:
        """What the API says about itself.

        Raises ConfigError for the API of another subnet, ApiUnavailable when it was the right one before.
        """
        info = await self._http.request("GET", "/info", answer=ApiInfo)
        if info.netuid != self._netuid:
            # Their mistake then, which they will mend: it must not end every node that runs.
            wrong = ApiUnavailable if self._was_right else ConfigError
            raise wrong(
                f"chain.netuid is {self._netuid} but the API at api.url serves subnet {info.netuid}: "
                "correct one of them"
            )
        self._was_right = True
        return info

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def open_api(settings: Settings, signer: Signer, clock: Clock) -> SubnetApi:
    """The API at `api.url`; it connects at the first call. Raises ConfigError for an address that is none."""
    url, netuid = settings.api.url, settings.chain.netuid
    asking = HttpClient(base_url=url, timeout_s=ATTEMPT_S, attempts_deadline_s=CALL_S, clock=clock)
    receiver = Receiver(asking, clock, netuid=netuid)
    calling = HttpClient(
        base_url=url,
        timeout_s=ATTEMPT_S,
        attempts_deadline_s=CALL_S,
        signer=signer,
        receiver=receiver,
        clock=clock,
    )
    return SubnetApi(calling, receiver, signer)
