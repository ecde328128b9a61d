"""Prometheus metrics of one process, in a registry of their own, and the event loop's lag."""

import asyncio
import platform
from collections import deque
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
LAG_WINDOW_S = 60.0
RPC_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
HTTP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


def product_version() -> str:
    """The installed version of quasar-node, "unknown" when it runs from a bare checkout."""
    try:
        return version("quasar-node")
    except PackageNotFoundError:
        return "unknown"


class Metrics:
    """Every metric of the product; a role touches those it knows about.

    No label ever holds a submission, a hotkey or a URL: the number of series must not grow with use.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, role: str = "node") -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.build_info = Gauge(
            "quasar_build_info",
            "Always 1; the labels say what runs",
            ["version", "role", "python"],
            registry=self.registry,
        )
        self.build_info.labels(product_version(), role, platform.python_version()).set(1)
        self.device_in_service = Gauge(
            "quasar_device_in_service",
            "1 while a validator judges on the device, 0 while the device does not compute",
            ["device"],
            registry=self.registry,
        )
        self.block_height = Gauge("quasar_block_height", "Chain head last seen", registry=self.registry)
        self.blocks_since_weights = Gauge(
            "quasar_blocks_since_weights",
            "Blocks since this hotkey's weights changed on chain",
            registry=self.registry,
        )
        self.weights_last_success = Gauge(
            "quasar_weights_last_success_timestamp_seconds",
            "When weights were last read back from the chain",
            registry=self.registry,
        )
        self.set_weights = Counter(
            "quasar_set_weights", "Attempts to set weights", ["result"], registry=self.registry
        )
        self.chain_rpc_duration = Histogram(
            "quasar_chain_rpc_duration_seconds",
            "Duration of chain calls",
            buckets=RPC_BUCKETS_S,
            registry=self.registry,
        )
        self.evaluations = Counter(
            "quasar_evaluations", "Finished evaluations", ["outcome", "fault"], registry=self.registry
        )
        self.evaluation_queue_depth = Gauge(
            "quasar_evaluation_queue_depth", "Submissions that wait for a verdict", registry=self.registry
        )
        self.measured_tokens_per_second = Gauge(
            "quasar_measured_tokens_per_second",
            "Last measured throughput",
            ["gpu", "league"],
            registry=self.registry,
        )
        self.inference_requests_running = Gauge(
            "quasar_inference_requests_running", "Inference requests in the model", registry=self.registry
        )
        self.inference_requests_waiting = Gauge(
            "quasar_inference_requests_waiting", "Inference requests in the queue", registry=self.registry
        )
        self.page_listeners = Gauge(
            "quasar_page_listeners", "Readers that follow the API's page live", registry=self.registry
        )
        self.event_loop_lag = Gauge(
            "quasar_event_loop_lag_seconds",
            "How late the event loop woke up, the worst of a minute",
            registry=self.registry,
        )
        self.http_requests = Counter(
            "quasar_http_requests", "Answered requests", ["method", "route", "status"], registry=self.registry
        )
        self.http_request_duration = Histogram(
            "quasar_http_request_duration_seconds",
            "Time to the answer",
            ["route"],
            buckets=HTTP_BUCKETS_S,
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text that Prometheus scrapes; its type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def values(self) -> Mapping[str, float]:
        """Every sample without labels by its name, for `status` and tests."""
        return {
            sample.name: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.labels
        }


class LoopLagMonitor:
    """Component that measures how late the event loop wakes a sleeper: the time that something blocked it."""

    name = "loop-lag"

    def __init__(self, metrics: Metrics, *, interval_s: float = 1.0) -> None:
        self._metrics = metrics
        self._interval_s = interval_s

    async def run(self) -> None:
        """Sleep and compare, for ever."""
        # The loop's own clock: lag is a property of this loop, which no passed-in clock could show.
        loop = asyncio.get_running_loop()
        # The worst of a minute: a scrape now and then would miss the one sleeper that woke up late.
        latest: deque[float] = deque(maxlen=max(1, round(LAG_WINDOW_S / self._interval_s)))
        while True:
            due = loop.time() + self._interval_s
            await asyncio.sleep(self._interval_s)
            latest.append(max(0.0, loop.time() - due))
            self._metrics.event_loop_lag.set(max(latest))
