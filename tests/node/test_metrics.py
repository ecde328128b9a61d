"""Metrics: the names that operators rely on, and the loop's lag."""

import asyncio
import contextlib
import time

from node.metrics import LoopLagMonitor, Metrics

NAMES = [
    "quasar_build_info",
    "quasar_block_height",
    "quasar_blocks_since_weights",
    "quasar_weights_last_success_timestamp_seconds",
    "quasar_set_weights_total",
    "quasar_chain_rpc_duration_seconds",
    "quasar_evaluations_total",
    "quasar_evaluation_queue_depth",
    "quasar_measured_tokens_per_second",
    "quasar_inference_requests_running",
    "quasar_inference_requests_waiting",
    "quasar_event_loop_lag_seconds",
]


def test_every_documented_metric_is_there() -> None:
    metrics = Metrics(role="validator")
    metrics.set_weights.labels("ok").inc()
    metrics.evaluations.labels("passed", "none").inc()
    metrics.measured_tokens_per_second.labels("NVIDIA H200", "100k").set(5)
    text = metrics.render().decode()
    assert [name for name in NAMES if f"\n{name}" not in text] == []
    assert 'role="validator"' in text
    assert 'quasar_evaluations_total{fault="none",outcome="passed"} 1.0' in text
    assert metrics.values()["quasar_event_loop_lag_seconds"] == 0


async def test_blocked_loop_shows() -> None:
    metrics = Metrics()
    monitor = asyncio.create_task(LoopLagMonitor(metrics, interval_s=0.01).run())
    await asyncio.sleep(0)
    time.sleep(0.3)
    await asyncio.sleep(0.05)
    assert metrics.values()["quasar_event_loop_lag_seconds"] > 0.2
    monitor.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await monitor
