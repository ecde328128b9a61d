"""Attacks that only a GPU allows, each with the verdict that it must get, through the real sandbox."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from kernels.export import export_files
from node.sandbox import detect_tier
from node.sandbox_spec import SandboxTier
from protocol.messages import EvaluationReport
from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge
from tests.adversarial.test_attacks import wrapped
from tests.requirements import missing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTH = 100_000

# What a submission's worker waits with: an attack that takes it away ends its turn with kernels in flight.
NO_WAITING = """
torch.cuda.synchronize = lambda *arguments, **options: None
"""
# The same in trials of many calls alone, and not before the inputs are unmapped that its kernels read.
NO_WAITING_IN_TIMED_TRIALS = """
from kernels.harness import rooms
_calls = []
_wait = torch.cuda.synchronize
_tidy = rooms.DeviceRoom.tidy

def _wait_for_few(*arguments, **options):
    if len(_calls) < 8:
        _wait()

def _wait_and_tidy(room):
    _calls.clear()
    _wait()
    _tidy(room)

torch.cuda.synchronize = _wait_for_few
rooms.DeviceRoom.tidy = _wait_and_tidy
"""
STREAM = """
_stream = torch.cuda.Stream()
"""


def holding(percent: int) -> str:
    """One that keeps that much of the GPU's memory."""
    hold = f"torch.empty(torch.cuda.mem_get_info()[1] * {percent} // 100, dtype=torch.uint8, device='cuda')"
    return "_held = []\n" + wrapped(f"if not _held: _held.append({hold})")


@contextmanager
def crowded(percent: int) -> Iterator[None]:
    """Another process that keeps that much of the GPU's memory."""
    program = f"""
import torch
held = torch.empty(torch.cuda.mem_get_info()[1] * {percent} // 100, dtype=torch.uint8, device="cuda")
print("held", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def honest_tokens_per_sec() -> dict[str, float]:
    """Filled by the first honest verdict; what the attacks are compared with."""
    return {}


@pytest.fixture
def honest(judge_submission: Judge, honest_tokens_per_sec: dict[str, float]) -> float:
    """What the same kernel gets without an attack, in tokens per second."""
    if not honest_tokens_per_sec:
        figures = judge_submission(profile="gpu", length=LENGTH).figures
        assert figures.status is Status.PASSED, figures.evidence
        assert figures.measured_tokens_per_sec is not None
        honest_tokens_per_sec["chunk"] = figures.measured_tokens_per_sec
    return honest_tokens_per_sec["chunk"]


def assert_no_faster(report: EvaluationReport, honest: float) -> None:
    figures = report.figures
    assert figures.status is Status.PASSED, figures.evidence
    assert figures.measured_tokens_per_sec is not None
    assert figures.measured_tokens_per_sec <= 1.15 * honest, figures.evidence


def test_an_honest_kernel_and_what_its_verdict_shows(judge_submission: Judge) -> None:
    """The same kernel that the attacks are built on."""
    figures = judge_submission(profile="gpu", length=LENGTH).figures
    assert figures.status is Status.PASSED, figures.evidence
    assert figures.measured_tokens_per_sec is not None
    assert figures.measured_tokens_per_sec < figures.evidence["roofline_tokens_per_sec"]
    assert figures.vram_mb is not None
    assert 200 < figures.vram_mb < 8192
    assert len(figures.evidence["yardstick"]["beside_ns_per_token"]) == len(figures.evidence["trial_s"])


def test_a_side_stream_is_waited_for(judge_submission: Judge, honest: float) -> None:
    """Computes where the usual stream does not see it, and joins it in the end."""
    side = (
        "_stream.wait_stream(torch.cuda.current_stream())",
        "with torch.cuda.stream(_stream): o = _plain_chunk_quasar(q, k, v, beta, **kwargs)[0]",
        "torch.cuda.current_stream().wait_stream(_stream)",
    )
    assert_no_faster(judge_submission(STREAM + wrapped(*side), profile="gpu", length=LENGTH), honest)


def test_a_side_stream_that_is_not_joined_is_no_shortcut(judge_submission: Judge, honest: float) -> None:
    """The same, and does not join it."""
    # The next call reads this one's last token on the usual stream: what is not there yet is wrong.
    side = "with torch.cuda.stream(_stream): o = _plain_chunk_quasar(q, k, v, beta, **kwargs)[0]"
    report = judge_submission(STREAM + wrapped(side), profile="gpu", length=LENGTH)
    if report.figures.status is Status.PASSED:
        assert_no_faster(report, honest)
    else:
        allowed = (Status.WRONG_OUTPUT, Status.NAN_OR_INF, Status.INCONSISTENT)
        assert report.figures.status in allowed, report.figures.evidence


def test_done_with_kernels_in_flight(judge_submission: Judge) -> None:
    """Says that it is done long before its kernels are."""
    late = (
        "with torch.cuda.stream(_stream):",
        "    torch.cuda._sleep(400_000_000)",
        "    o = _plain_chunk_quasar(q, k, v, beta, **kwargs)[0]",
    )
    figures = judge_submission(STREAM + NO_WAITING + wrapped(*late), profile="gpu", length=LENGTH).figures
    assert figures.status in (Status.TAMPERED, Status.WRONG_OUTPUT, Status.NAN_OR_INF), figures.evidence
    assert figures.measured_tokens_per_sec is None


def test_a_little_early_pays_for_what_is_in_flight(judge_submission: Judge, honest: float) -> None:
    """Says that it is done once everything is launched, and lets the GPU finish."""
    code = NO_WAITING_IN_TIMED_TRIALS + wrapped("_calls.append(None)")
    report = judge_submission(code, profile="gpu", length=LENGTH)
    if report.figures.status is Status.PASSED:
        assert_no_faster(report, honest)
    else:
        allowed = (Status.TAMPERED, Status.WRONG_OUTPUT)
        assert report.figures.status in allowed, report.figures.evidence


def test_early_and_careless_ends_itself(judge_submission: Judge) -> None:
    """Its inputs are unmapped under kernels that still read them."""
    figures = judge_submission(NO_WAITING, profile="gpu", length=LENGTH).figures
    assert figures.status in (Status.TAMPERED, Status.WRONG_OUTPUT, Status.CRASHED), figures.evidence
    assert figures.fault is Fault.MINER


def replayed(*before: str) -> str:
    """One that captures the calls of a timed shape in a graph, and replays it after these lines."""
    graph = """
_graphs = {}

def _replayed(q, k, v, beta):
    if q.shape not in _graphs:
        kept = [x.clone() for x in (q, k, v, beta)]
        _plain_chunk_quasar(*kept)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            o = _plain_chunk_quasar(*kept)[0]
        _graphs[q.shape] = graph, o, kept
    graph, o, kept = _graphs[q.shape]
"""
    lines = (*before, "graph.replay()", "return o.clone()")
    body = "\n".join(f"    {line}" for line in lines)
    return graph + body + wrapped("o = o if kwargs or q.shape[1] < 1000 else _replayed(q, k, v, beta)")


def test_a_graph_that_is_replayed_on_old_inputs(judge_submission: Judge) -> None:
    """Captures the work once, and replays it on the inputs of then."""
    figures = judge_submission(replayed(), profile="gpu", length=LENGTH).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence
    assert figures.fault is Fault.MINER


def test_a_graph_that_is_replayed_on_new_inputs_is_honest(judge_submission: Judge) -> None:
    """What a graph holds in memory must not be given to others meanwhile."""
    copies = "for old, new in zip(kept, (q, k, v, beta)): old.copy_(new)"
    figures = judge_submission(replayed(copies), profile="gpu", length=LENGTH).figures
    assert figures.status is Status.PASSED, figures.evidence


def test_a_hog_of_the_gpus_memory(judge_submission: Judge) -> None:
    """Holds more than half of it."""
    figures = judge_submission(holding(51), profile="gpu", length=LENGTH).figures
    assert figures.status is Status.OUT_OF_MEMORY, figures.evidence


def test_a_hog_that_asks_for_more_than_there_is(judge_submission: Judge) -> None:
    """Fails for want of memory, of which it could have had its share."""
    figures = judge_submission(holding(95), profile="gpu", length=LENGTH).figures
    assert figures.status is Status.OUT_OF_MEMORY, figures.evidence
    assert figures.fault is Fault.MINER


def test_a_gpu_that_others_fill_is_not_held_against_the_submission(judge_submission: Judge) -> None:
    """No attack: it asks for less than it may hold."""
    with crowded(55):
        figures = judge_submission(holding(42), profile="gpu", length=LENGTH).figures
    assert figures.status is Status.INFRASTRUCTURE, figures.evidence
    assert "MiB for the submission, which may hold" in figures.evidence["reason"]


def test_nearly_half_of_the_gpus_memory_is_left_to_the_submission(judge_submission: Judge) -> None:
    """At a million tokens, where the referee itself needs most; our kernel is six percent more."""
    figures = judge_submission(holding(42), profile="gpu", length=1_000_000, deadline_s=120.0).figures
    assert figures.status is Status.PASSED, figures.evidence


def test_a_swarm_that_fills_the_hosts_memory_beside_cuda(judge_submission: Judge) -> None:
    """Takes the host's memory with many processes, each of which is small enough."""
    # Each stays below the limit of a process, which with CUDA in it cannot be one of addresses.
    if detect_tier() is not SandboxTier.CGROUP:
        missing("no cgroup v2 of its own here")
    swarm = """
import os, time
torch.empty(1, device="cuda")
print("THE SWARM BEGINS", flush=True)
for _ in range(12):
    if os.fork() == 0:
        held = bytearray(2**30)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(3600)
time.sleep(3600)
"""
    figures = judge_submission(swarm, profile="gpu", length=4096, memory_limit_bytes=8 * 2**30).figures
    assert figures.status is Status.OUT_OF_MEMORY, figures.evidence
    assert figures.fault is Fault.MINER
    assert figures.evidence["reason"] == "it held more than 8,192 MiB of the host's memory"
    assert "THE SWARM BEGINS" in figures.evidence["log_tail"]


def test_patched_clocks_and_events(judge_submission: Judge, honest: float) -> None:
    """Stops the clocks, and CUDA's too."""
    patch = (
        "import time\n"
        "time.perf_counter = time.monotonic = time.time = lambda: 0.0\n"
        "torch.cuda.Event.elapsed_time = lambda *arguments: 1e-6\n"
    )
    assert_no_faster(judge_submission(patch, profile="gpu", length=LENGTH), honest)


def test_a_head_left_out_of_some_calls(judge_submission: Judge) -> None:
    """One wrong call among many."""
    # Each output of a trial is compared as a whole.
    now_and_then = wrapped("_calls.append(None)", "if len(_calls) % 8 == 0: o[:, :, 3] = 0")
    figures = judge_submission("_calls = []\n" + now_and_then, profile="gpu", length=LENGTH).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence
    assert figures.fault is Fault.MINER


def test_an_l2_cache_set_aside(judge_submission: Judge, honest: float) -> None:
    """Keeps a part of the cache for itself from call to call."""
    aside = """
from cuda.bindings import driver as _driver
torch.empty(1, device="cuda")
print("set aside:", _driver.cuCtxSetLimit(_driver.CUlimit.CU_LIMIT_PERSISTING_L2_CACHE_SIZE, 32 * 2**20))
"""
    report = judge_submission(aside, profile="gpu", length=LENGTH)
    assert "set aside" in report.figures.evidence["log_tail"]
    assert_no_faster(report, honest)


def test_a_batch_in_place_of_one_call_after_the_other(judge_submission: Judge) -> None:
    """Waits for the inputs of all calls and runs them side by side."""
    # Leaves the outputs open until the last call, and computes them all with the beta that was drawn.
    batch = """
_open = []

def _later(q, k, v, beta, kwargs):
    _open.append((q, k, v, beta, torch.empty_like(v)))
    return _open[-1][-1]

_synchronize = torch.cuda.synchronize

def _fill(*arguments, **options):
    while _open:
        q, k, v, beta, o = _open.pop()
        o.copy_(_plain_chunk_quasar(q, k, v, beta)[0])
    _synchronize(*arguments, **options)

torch.cuda.synchronize = _fill
"""
    figures = judge_submission(
        batch + wrapped("o = o if kwargs or q.shape[1] < 1000 else _later(q, k, v, beta, kwargs)"),
        profile="gpu",
        length=LENGTH,
    ).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence
    assert figures.evidence["calls"] > 1


def busy(size: int) -> str:
    """One that leaves the GPU 400 products of that size to do at each call."""
    keep = f"""
torch.cuda.synchronize = lambda *arguments, **options: torch.cuda.current_stream().synchronize()
_left = torch.randn({size}, {size}, device="cuda", dtype=torch.bfloat16)

def _keep_busy():
    torch.cuda.current_stream().synchronize()
    with torch.cuda.stream(_stream):
        for _ in range(400):
            _left @ _left
"""
    return STREAM + keep + wrapped("_keep_busy() if q.shape[1] > 1000 else None")


def test_a_gpu_kept_busy_for_a_while_is_no_gain(judge_submission: Judge, honest: float) -> None:
    """It is over once the yardstick's inputs are drawn, or it slows down the yardstick."""
    figures = judge_submission(busy(8192), profile="gpu", length=LENGTH, deadline_s=200.0).figures
    assert figures.status in (Status.PASSED, Status.TAMPERED), figures.evidence
    if figures.status is Status.PASSED:
        assert figures.measured_tokens_per_sec is not None
        assert figures.measured_tokens_per_sec <= 1.15 * honest, figures.evidence


def test_a_gpu_kept_busy_while_others_are_measured(judge_submission: Judge) -> None:
    """Leaves work behind that runs in the yardstick's turns."""
    figures = judge_submission(busy(16384), profile="gpu", length=LENGTH, deadline_s=200.0).figures
    assert figures.status is Status.TAMPERED, figures.evidence
    assert "busy outside" in figures.evidence["reason"]


def test_a_slow_kernel_is_honest_too(judge_submission: Judge) -> None:
    """Token by token, and no attack."""
    figures = judge_submission(profile="gpu", length=4096, replace=export_files("recurrent")).figures
    assert figures.status is Status.PASSED, figures.evidence
