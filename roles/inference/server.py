"""The inference server: HTTP endpoints, a bounded queue, and the model in its worker process."""

import asyncio
import base64
from dataclasses import dataclass
from typing import Final

import numpy as np
from aiohttp import web

from node.clock import Clock, SystemClock
from node.device_turns import urgent_turn
from node.devices import resolve_device
from node.http_server import ApiProblem, HttpServer, base_app, json_body
from node.logs import get_logger
from node.metrics import Metrics
from node.settings_model import Settings
from protocol.errors import ConfigError
from protocol.messages import InferenceAnswer, InferenceRequest
from protocol.signing import Signer, inference_text, sign_text
from roles.inference.callers import Callers, MetagraphProvider
from roles.inference.model_path import check_model_path
from roles.inference.requests import check_request
from roles.inference.served_model import Generated, ServedModel
from roles.inference.turns import Turns

WATCH_S: Final = 0.1
"""How often a waiting request looks whether its client is still there."""
PROBE_S: Final = 30.0
"""An idle model answers one token this often, so that readiness means more than a process that exists."""

_log = get_logger(__name__)


@dataclass(slots=True)
class _Job:
    """One request between the handler that waits for it and the task that works on it."""

    is_wanted: bool = True
    is_running: bool = False


def requires_auth(settings: Settings) -> bool:
    """Whether only validators are answered: always, unless the settings or the local chain say otherwise."""
    asked = settings.inference.require_auth
    return not settings.is_local_chain if asked is None else asked


class InferenceServer:
    """Component that serves the reference model over HTTP.

    `signer` is the miner's hotkey; without one answers are not signed and validators refuse them.
    `metagraph` says who has a validator permit; both are needed where authentication is required. Raises
    ConfigError for a missing GPU, a model folder that is not there, and authentication without the two.
    """

    name = "inference"

    def __init__(
        self,
        settings: Settings,
        signer: Signer | None,
        metagraph: MetagraphProvider | None,
        *,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        own = settings.inference
        self._settings = own
        self._signer = signer
        self._clock = clock if clock is not None else SystemClock()
        metrics = metrics if metrics is not None else Metrics(role="inference")
        self._callers = self._open_callers(settings, metagraph)
        self._turns = Turns(own.queue_size, metrics, self._clock)
        self._model = ServedModel(
            check_model_path(own.reference_model),
            resolve_device(settings.node.device),
            self._clock,
            trust_remote_code=own.trust_remote_code,
            call_timeout_s=own.request_deadline_s,
            cuda_graphs=own.cuda_graphs,
        )
        self._tasks: set[asyncio.Task[Generated]] = set()
        app = base_app(readiness=self._readiness, metrics=metrics, max_body_bytes=own.max_body_bytes)
        app.router.add_post("/inference", self._infer)
        app.router.add_get("/health", self._health)
        app.router.add_get("/model_info", self._model_info)
        self._http = HttpServer(app, own.host, own.port, name=self.name, drain_s=settings.node.drain_s)

    @property
    def port(self) -> int:
        """The bound port; only after `start`."""
        return self._http.port

    @property
    def model(self) -> ServedModel:
        """The model behind the server."""
        return self._model

    async def start(self) -> None:
        """Bind the port; the model is loaded by `run`. Raises PortInUse, ConfigError."""
        await self._http.start()

    async def run(self) -> None:
        """Load the model and serve until cancelled; running requests may finish within the drain time."""
        await self.start()
        keepers = {asyncio.create_task(self._model.keep()), asyncio.create_task(self._probe())}
        try:
            # Not awaited themselves: a cancellation must reach them only after the drain.
            done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
            for keeper in done:
                keeper.result()
        finally:
            await self._stop(keepers)

    async def _stop(self, keepers: set[asyncio.Task[None]]) -> None:
        try:
            await self._http.close()
        finally:
            for task in (*keepers, *self._tasks):
                task.cancel()
            await asyncio.gather(*keepers, *self._tasks, return_exceptions=True)
            await self._model.close()

    def _open_callers(self, settings: Settings, metagraph: MetagraphProvider | None) -> Callers | None:
        if not requires_auth(settings):
            return None
        if self._signer is None or metagraph is None:
            raise ConfigError(
                "inference.require_auth needs the miner's hotkey and the chain: "
                "set the wallet, or require_auth = false on a network that nobody else reaches"
            )
        return Callers(self._signer.ss58_address, metagraph, self._clock)

    # --- endpoints ------------------------------------------------------------------------------------------

    async def _infer(self, request: web.Request) -> web.Response:
        if self._callers is not None:
            await self._callers.check(request)
        message = await json_body(request, InferenceRequest)
        check_request(message, self._model.info, max_gen_len=self._settings.max_gen_len)
        generated = await self._wait_for_answer(request, message)
        answer = self._answer(message, generated)
        return web.Response(text=answer.model_dump_json(), content_type="application/json")

    async def _health(self, _request: web.Request) -> web.Response:
        model = self._model
        return web.json_response(
            {"status": model.state.value, "model_name": model.shown_name, "device": model.device}
        )

    async def _model_info(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._model.info.model_dump_json(), content_type="application/json")

    async def _readiness(self) -> str | None:
        return self._model.problem

    # --- one request ----------------------------------------------------------------------------------------

    async def _wait_for_answer(self, request: web.Request, message: InferenceRequest) -> Generated:
        """The model's answer, unless the client goes away or the deadline comes first."""
        job = _Job()
        task = asyncio.create_task(self._work(message, job))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        deadline_s = self._settings.request_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                while not task.done():
                    await asyncio.wait({task}, timeout=WATCH_S)
                    if request.transport is None or request.transport.is_closing():
                        raise ConnectionResetError("the client went away")
        except TimeoutError as error:
            raise ApiProblem(
                503,
                f"the answer was not finished within {deadline_s:g} s: ask for fewer tokens or try again",
                {"Retry-After": "5"},
            ) from error
        finally:
            job.is_wanted = False
            if not job.is_running:
                # It only waits. One that runs ends at its next slice: to cancel it would kill the worker.
                task.cancel()
        return task.result()

    async def _work(self, message: InferenceRequest, job: _Job) -> Generated:
        # Measurements on this device give way, or are disturbed: a validator does not wait for them.
        async with self._turns.take(), urgent_turn(self._model.device, self._clock):
            job.is_running = True
            return await self._model.generate(
                message.prompt, message.gen_len, message.logits_at_step, is_wanted=lambda: job.is_wanted
            )

    def _forget(self, task: asyncio.Task[Generated]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Seen by the handler too, unless that has left.
            _log.debug("request ended without an answer", reason=str(error) or type(error).__name__)

    def _answer(self, message: InferenceRequest, generated: Generated) -> InferenceAnswer:
        captured = generated.captured_logits
        logits: list[float] | str | None = captured
        if captured is not None and message.logits_encoding == "list":
            logits = np.frombuffer(base64.b64decode(captured), dtype="<f4").tolist()
        signature = None
        if self._signer is not None and message.nonce is not None:
            text = inference_text(
                nonce=message.nonce,
                tokens=generated.tokens,
                captured_logits_sha256=generated.captured_logits_sha256,
            )
            signature = sign_text(self._signer, text)
        # Not validated again: the vocabulary may be large.
        return InferenceAnswer.model_construct(
            tokens=generated.tokens,
            captured_logits=logits,
            elapsed_sec=generated.elapsed_s,
            nonce=message.nonce,
            signature=signature,
        )

    async def _probe(self) -> None:
        """Ask an idle model for one token now and then; a dead or hung one is replaced."""
        while True:
            await self._clock.sleep(PROBE_S)
            if self._turns.is_idle and self._model.problem is None:
                async with self._turns.take():
                    await self._model.probe()
