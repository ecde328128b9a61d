"""The model as the event loop sees it: a worker process, loaded, watched, replaced, and asked in slices."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from node.clock import Clock
from node.logs import get_logger
from node.workers import WorkerFailed, WorkerProcess, WorkerRefused
from protocol.errors import Temporary
from protocol.messages import ModelInfo

WORKER_MODULE: Final = "roles.inference.worker"
SLICE_S: Final = 0.25
"""How long the model works before it is asked whether the answer is still wanted."""
LOAD_TIMEOUT_S: Final = 3600.0
"""Loading may include a download."""
WARM_UP_TIMEOUT_S: Final = 600.0
"""For one part of the warm-up; the first compiles."""
PROBE_TIMEOUT_S: Final = 60.0
PROBE: Final = {"prompt": [0], "gen_len": 1, "logits_at_step": 1}
LOOK_S: Final = 0.5
BAR_LENGTH: Final = 20
RETRY_START_S: Final = 1.0
RETRY_MAX_S: Final = 60.0

_log = get_logger(__name__)


class ModelUnavailable(Temporary):
    """The model cannot answer now; the text says why."""


class ModelRefused(ModelUnavailable):
    """The worker could not do what was asked, for want of memory for instance; it lives on."""


class Abandoned(Exception):
    """Nobody wants the answer any more."""


class State(StrEnum):
    """What `/health` says of the model."""

    LOADING = "loading"
    HEALTHY = "healthy"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Generated:
    """What the model answered; logits as base64 of little-endian float32, with the digest of those bytes."""

    tokens: list[int]
    captured_logits: str | None
    captured_logits_sha256: str
    elapsed_s: float


class ServedModel:
    """A model in a worker process; `keep` loads it and replaces the process whenever it dies.

    Healthy means that the model has answered a token, not merely that its process runs.
    """

    def __init__(
        self,
        name: str,
        device: str,
        clock: Clock,
        *,
        trust_remote_code: bool,
        call_timeout_s: float,
        cuda_graphs: bool = True,
    ) -> None:
        self.name = name
        self.device = device
        self._clock = clock
        self._call_timeout_s = call_timeout_s
        self._warms_up = cuda_graphs
        flags = ["--trust-remote-code"] if trust_remote_code else []
        self._worker = WorkerProcess(
            WORKER_MODULE,
            args=[name, "--device", device, *flags],
            name="inference-model",
            clock=clock,
        )
        self._state = State.LOADING
        self._reason = f"model {name!r} is being loaded"
        self._info: ModelInfo | None = None
        self._wake = asyncio.Event()

    @property
    def state(self) -> State:
        """How the model is, seen from outside."""
        if self._state is State.HEALTHY and not self._worker.is_ready:
            return State.LOADING
        return self._state

    @property
    def shown_name(self) -> str:
        """The model's name; of a model in a folder, the folder's name alone."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None when there is none."""
        return self._worker.pid

    @property
    def problem(self) -> str | None:
        """Why the model cannot answer, None when it can."""
        if self.state is State.HEALTHY:
            return None
        return self._reason if self._state is not State.HEALTHY else "the model's process is being replaced"

    @property
    def info(self) -> ModelInfo:
        """What the model is. Raises ModelUnavailable before it has been loaded."""
        self._require_healthy()
        assert self._info is not None
        return self._info

    async def keep(self) -> None:
        """Load the model and load it again whenever its process is gone, for ever."""
        retry_s = RETRY_START_S
        while True:
            if self.state is State.HEALTHY:
                retry_s = RETRY_START_S
                await self._wait_for_trouble()
            elif await self._load():
                continue
            else:
                await self._clock.sleep(retry_s)
                retry_s = min(RETRY_MAX_S, 2 * retry_s)

    async def generate(
        self,
        prompt: list[int],
        gen_len: int,
        logits_at_step: int | None,
        *,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Generated:
        """Have the model answer; one caller at a time.

        Between slices `is_wanted` is asked, and Abandoned raised when it says no: the worker lives on. After
        a refusal the worker must show that it still answers, or it is replaced. Raises ModelUnavailable.
        """
        try:
            return await self._generate(prompt, gen_len, logits_at_step, is_wanted)
        except ModelRefused:
            await self.probe()
            raise

    async def probe(self) -> None:
        """Have the model answer one token, and replace a process that cannot; one caller at a time."""
        try:
            await self._generate(**PROBE, is_wanted=lambda: True)
        except ModelRefused as error:
            _log.error("model worker answers nothing any more", model=self.name, reason=str(error))
            await self._worker.kill()
            self._expect_replacement()
        except ModelUnavailable:
            # It is being replaced already.
            return

    async def _generate(
        self, prompt: list[int], gen_len: int, logits_at_step: int | None, is_wanted: Callable[[], bool]
    ) -> Generated:
        self._require_healthy()
        params: dict[str, Any] = {"prompt": prompt, "gen_len": gen_len, "logits_at_step": logits_at_step}
        answer = await self._call("generate", {**params, "budget_s": SLICE_S})
        while not answer["done"]:
            if not is_wanted():
                raise Abandoned
            answer = await self._call("resume", {"budget_s": SLICE_S})
        return Generated(
            answer["tokens"],
            answer["captured_logits"],
            answer["captured_logits_sha256"],
            answer["elapsed_sec"],
        )

    async def close(self) -> None:
        """End the worker."""
        await self._worker.close(patience_s=1.0)

    async def _load(self) -> bool:
        self._state = State.LOADING
        self._reason = f"model {self.shown_name!r} is being loaded"
        started = self._clock.monotonic()
        try:
            info = await self._worker.call("info", {}, LOAD_TIMEOUT_S)
            # A path of this machine is nobody else's business.
            self._info = ModelInfo.model_validate({**info, "model_name": self.shown_name})
            await self._warm_up()
            await self._worker.call("generate", {**PROBE, "budget_s": SLICE_S}, PROBE_TIMEOUT_S)
        except (WorkerFailed, WorkerRefused) as error:
            self._state = State.FAILED
            self._reason = str(error)
            _log.error("model cannot be served", model=self.name, device=self.device, reason=str(error))
            return False
        self._state = State.HEALTHY
        self._wake.clear()
        seconds = round(self._clock.monotonic() - started, 3)
        _log.info(
            "model loaded", model=self.name, device=self.device, dtype=self._info.dtype, seconds=seconds
        )
        return True

    async def _warm_up(self) -> None:
        """Have the worker capture its graphs; if it dies of that, the next one will not. WorkerFailed."""
        while self._warms_up:
            try:
                answer = await self._worker.call("warm_up", {}, WARM_UP_TIMEOUT_S)
            except WorkerFailed:
                self._warms_up = False
                _log.warning("model worker died while it captured CUDA graphs: it goes on without them")
                raise
            if answer["done"]:
                if answer["warning"] is not None:
                    _log.warning(answer["warning"], model=self.name)
                _log.info("model is warm", model=self.name, decoding=answer["decoding"])
                return
            done = f"{answer['finished']} of {answer['total']} parts done, next the {answer['stage']}"
            self._reason = f"model {self.shown_name!r} is warming up: {done}"
            _log.info("warming up", progress=_bar(answer["finished"], answer["total"]), next=answer["stage"])

    async def _wait_for_trouble(self) -> None:
        while self.state is State.HEALTHY:
            try:
                # By the loop's own clock: the process may die at any moment, whatever time a test sees.
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            break

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._worker.call(method, params, self._call_timeout_s)
        except WorkerRefused as error:
            raise ModelRefused(str(error)) from error
        except WorkerFailed as error:
            self._expect_replacement()
            _log.error("model worker failed", model=self.name, reason=str(error))
            raise ModelUnavailable("the model's process ended and is being replaced: try again") from error

    def _expect_replacement(self) -> None:
        self._state = State.LOADING
        self._reason = "the model's process is being replaced"
        self._wake.set()

    def _require_healthy(self) -> None:
        if (problem := self.problem) is not None:
            raise ModelUnavailable(f"{problem}: try again")


def _bar(finished: int, total: int) -> str:
    filled = BAR_LENGTH * finished // total
    return f"[{'#' * filled}{'.' * (BAR_LENGTH - filled)}] {finished}/{total}"
