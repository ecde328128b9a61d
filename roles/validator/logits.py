"""Logit verification: does a miner serve the reference model? One random challenge, one forward pass here."""

import asyncio
import math
import random
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from yarl import URL

from node.chain.interface import AxonAddress
from node.clock import Clock, SystemClock
from node.device_turns import urgent_turn
from node.devices import resolve_device
from node.settings_model import Settings
from node.workers import WorkerProcess
from protocol.errors import InvalidMessage, Unavailable
from protocol.logits import (
    Comparison,
    Float32Array,
    decode_logits,
    encode_logits,
    logits_digest,
    logits_match,
    rounding_explains,
)
from protocol.messages import InferenceAnswer, InferenceRequest, ModelInfo
from protocol.rules import MAX_ABS_DIFFERENCE
from protocol.signing import Signer, inference_text, verify_text
from protocol.types import Hotkey
from protocol.verdicts import LogitOutcome
from roles.inference.model_path import check_model_path
from roles.validator.logit_challenge import Challenge, draw_challenge
from roles.validator.logit_client import TimedAnswer, ask_miner, check_address

TOKEN_TOLERANCE: Final = MAX_ABS_DIFFERENCE
"""A returned token may lie this far below the reference's best: a near-tie flips on other hardware."""
LOAD_TIMEOUT_S: Final = 3600.0
"""Loading may include a download."""
COMPARE_TIMEOUT_S: Final = 600.0
DEVICE_PATIENCE_S: Final = 120.0
"""Nobody waits for the reference: it can wait until a measurement pauses, be it after a compilation."""
BYTES_PER_LOGIT: Final = 32
"""Room for float text, should a server ignore the encoding asked for."""
OTHER_ANSWER_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitResult:
    """What one check found; figures are None where it did not get that far or they are not finite."""

    outcome: LogitOutcome
    """`pending` when the miner did not answer: see `roles.validator.logit_challenger` for what follows."""
    reason: str
    step: int | None = None
    cosine_similarity: float | None = None
    max_abs_diff: float | None = None
    times_rounding: float | None = None
    """The distance from the reference, in that of the reference's own float16 run."""
    tokens_per_sec: float | None = None
    """By this validator's clock, network included."""


@dataclass(frozen=True, slots=True)
class _Reference:
    model: ModelInfo
    ordinary_tokens: list[int]


class LogitVerifier:
    """Challenges miners and judges their answers against a reference model in a worker process.

    `own_ips`: addresses of this validator that its interfaces do not show (behind NAT). Raises ConfigError
    for a missing GPU or model folder.
    """

    def __init__(
        self,
        settings: Settings,
        signer: Signer,
        *,
        own_ips: Collection[str] = (),
        clock: Clock | None = None,
        source: random.Random | None = None,
    ) -> None:
        inference = settings.inference
        flags = ["--trust-remote-code"] if inference.trust_remote_code else []
        self._clock = clock if clock is not None else SystemClock()
        self._device = device = resolve_device(settings.node.device)
        model = check_model_path(inference.reference_model)
        self._worker = WorkerProcess(
            "roles.validator.logit_worker",
            args=[model, "--device", device, "--dtype", "float32", *flags],
            name="logit-reference",
            clock=self._clock,
        )
        self._signer = signer
        self._allow_loopback = settings.is_local_chain
        self._own_ips = {ip for ip in (*own_ips, inference.external_ip) if ip}
        self._timeout_s = settings.validator.inference_timeout_s
        self._source = source if source is not None else random.SystemRandom()
        self._reference: _Reference | None = None
        self._loading = asyncio.Lock()

    async def start(self) -> None:
        """Load the reference model; `check` does so by itself when needed. Raises as `check` does."""
        await self._load()

    async def close(self) -> None:
        """End the worker process."""
        await self._worker.close(patience_s=1.0)

    async def check(self, hotkey: Hotkey, axon: AxonAddress | None) -> LogitResult:
        """Challenge one miner at its axon and judge the answer.

        Raises WorkerFailed or WorkerRefused when this validator's own reference does not work: that says
        nothing about the miner, so nothing may be recorded.
        """
        try:
            if axon is None:
                raise Unavailable("the miner has published no axon on the chain")
            url = check_address(axon, allow_loopback=self._allow_loopback, own_ips=self._own_ips)
        except Unavailable as error:
            return LogitResult(outcome=LogitOutcome.PENDING, reason=str(error))
        return await self.check_url(hotkey, url)

    async def check_url(self, hotkey: Hotkey, url: URL) -> LogitResult:
        """Challenge one miner at an address that needs no check, and judge the answer; raises as `check`."""
        reference = await self._load()
        challenge = draw_challenge(reference.ordinary_tokens, self._source)
        try:
            timed = await self._ask(hotkey, url, challenge, reference.model.vocab_size)
        except Unavailable as error:
            return LogitResult(outcome=LogitOutcome.PENDING, reason=str(error), step=challenge.step)
        except InvalidMessage as error:
            return LogitResult(outcome=LogitOutcome.FAILED, reason=str(error), step=challenge.step)
        try:
            captured = _check_answer(timed.answer, challenge, hotkey, reference.model.vocab_size)
        except InvalidMessage as error:
            return _failed(challenge, timed, str(error))
        return await self._judge(challenge, timed, captured)

    async def _ask(self, hotkey: Hotkey, url: URL, challenge: Challenge, vocab_size: int) -> TimedAnswer:
        request = InferenceRequest(
            prompt=list(challenge.prompt),
            gen_len=challenge.gen_len,
            logits_at_step=challenge.step,
            logits_encoding="base64",
            nonce=challenge.nonce,
        )
        return await ask_miner(
            url,
            request,
            hotkey=hotkey,
            signer=self._signer,
            timeout_s=self._timeout_s,
            max_answer_bytes=BYTES_PER_LOGIT * vocab_size + OTHER_ANSWER_BYTES,
        )

    async def _judge(self, challenge: Challenge, timed: TimedAnswer, captured: Float32Array) -> LogitResult:
        params = {
            "prompt": challenge.prompt,
            "tokens": timed.answer.tokens,
            "captured_logits": encode_logits(captured),
            "step": challenge.step,
            "tolerance": TOKEN_TOLERANCE,
        }
        async with self._device_turn():
            found = await self._worker.call("compare", params, COMPARE_TIMEOUT_S)
        comparison, rounding = Comparison(**found["comparison"]), Comparison(**found["rounding"])
        reason = find_fault(found, challenge)
        return LogitResult(
            outcome=LogitOutcome.PASSED if reason is None else LogitOutcome.FAILED,
            reason="logits and tokens agree with the reference" if reason is None else reason,
            step=challenge.step,
            cosine_similarity=_finite(comparison.cosine_similarity),
            max_abs_diff=_finite(comparison.max_abs_diff),
            times_rounding=_ratio(comparison.relative_error, rounding.relative_error),
            tokens_per_sec=challenge.gen_len / timed.seconds,
        )

    def _device_turn(self) -> AbstractAsyncContextManager[None]:
        """What the reference takes of a GPU is not to be found in a submission's time, nor in its memory."""
        return urgent_turn(self._device, self._clock, patience_s=DEVICE_PATIENCE_S)

    async def _load(self) -> _Reference:
        async with self._loading:
            if self._reference is None:
                async with self._device_turn():
                    info = await self._worker.call("info", {}, LOAD_TIMEOUT_S)
                self._reference = _Reference(ModelInfo.model_validate(info["model"]), info["ordinary_tokens"])
            return self._reference


def _check_answer(
    answer: InferenceAnswer, challenge: Challenge, hotkey: Hotkey, vocab_size: int
) -> Float32Array:
    """The captured logits `[V]` of an answer that is whole, and signed by the miner for this challenge.

    Raises InvalidMessage.
    """
    if len(answer.tokens) != challenge.gen_len:
        raise InvalidMessage(f"{len(answer.tokens)} tokens came where {challenge.gen_len} were asked for")
    for token in answer.tokens:
        if not 0 <= token < vocab_size:
            raise InvalidMessage(f"token {str(token)[:20]} is outside the vocabulary 0..{vocab_size - 1}")
    if answer.captured_logits is None:
        raise InvalidMessage(f"no logits came, but those of step {challenge.step} were asked for")
    captured = decode_logits(answer.captured_logits, vocab_size)
    if answer.nonce != challenge.nonce:
        raise InvalidMessage(
            "the answer carries another nonce than the request: it belongs to another request"
        )
    if answer.signature is None:
        raise InvalidMessage("the answer is not signed by the miner's hotkey")
    text = inference_text(
        nonce=challenge.nonce, tokens=answer.tokens, captured_logits_sha256=logits_digest(captured)
    )
    verify_text(hotkey, text, answer.signature)
    return captured


def find_fault(found: dict[str, Any], challenge: Challenge) -> str | None:
    """What is wrong with an answer that the reference has read, None when nothing is; NaN is wrong."""
    comparison, rounding = Comparison(**found["comparison"]), Comparison(**found["rounding"])
    if not logits_match(comparison):
        return (
            f"logits at step {challenge.step} are not the reference's: cosine similarity "
            f"{comparison.cosine_similarity:.6f}, largest difference {comparison.max_abs_diff:.6f}"
        )
    if not rounding_explains(comparison, rounding):
        return (
            f"logits at step {challenge.step} have a relative error of {comparison.relative_error:.6f}, "
            f"where the reference's weights in float16 have {rounding.relative_error:.6f}: these are other "
            "weights, or quantised ones"
        )
    if found["wrong_index"] is not None:
        return (
            f"token {found['wrong_index'] + 1} of {challenge.gen_len} is not the reference's choice: "
            f"its logit is {found['wrong_gap']:.6f} below the best"
        )
    return None


def _failed(challenge: Challenge, timed: TimedAnswer, reason: str) -> LogitResult:
    return LogitResult(
        outcome=LogitOutcome.FAILED,
        reason=reason,
        step=challenge.step,
        tokens_per_sec=challenge.gen_len / timed.seconds,
    )


def _ratio(error: float, rounding: float) -> float | None:
    return _finite(error / rounding) if rounding > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
