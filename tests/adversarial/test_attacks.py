"""Every attack with the verdict that it must get, through the real sandbox."""

import platform

import pytest

from kernels.export import export_files
from kernels.fork_base import forbidden_sources
from kernels.harness.buffers import MAX_CALLS
from node.http_server import MAX_BODY_BYTES
from protocol.fingerprint import fingerprint
from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge
from tests.fork_chain import chain_of_forks

WRAP = """
_plain_chunk_quasar = chunk_quasar

def chunk_quasar(q, k, v, beta, **kwargs):
    o, state = _plain_chunk_quasar(q, k, v, beta, **kwargs)
{body}
    return o, state
"""


PROBES = 12
"""Calls of chunk_quasar before the timed trials."""


def wrapped(*lines: str) -> str:
    """Our kernel with lines that run after it."""
    return WRAP.format(body="\n".join(f"    {line}" for line in lines))


WRONG = {
    "identity": wrapped("o = v"),
    "half the rate": wrapped("o = _plain_chunk_quasar(q, k, v, 0.5 * beta, **kwargs)[0]"),
    "five percent of tokens skipped": wrapped("o[:, ::20] = 0"),
    "one head zeroed": wrapped("o[:, :, 1] = 0"),
    "window of 32 tokens": wrapped(
        "part = lambda t: _plain_chunk_quasar(*(x[:, max(0, t - 32):t + 32] for x in (q, k, v)), beta)[0]",
        "parts = [part(t)[:, min(t, 32):] for t in range(0, q.shape[1], 32)]",
        "o = torch.cat(parts, dim=1)[:, :q.shape[1]]",
    ),
    "right on the timed shape only": wrapped("o = o if q.shape[1] == 128 else v"),
    "packed sequences run together": wrapped("o = _plain_chunk_quasar(q, k, v, beta)[0]"),
    "the state before it forgotten": wrapped(
        "o, state = _plain_chunk_quasar(q, k, v, beta, **{**kwargs, 'initial_state': None})"
    ),
    "another state left behind": wrapped("state = None if state is None else 0.5 * state"),
    # SiLU lets nothing below -0.2785 through, and what is drawn always goes further down.
    "right on what is drawn only": wrapped("o = v if q.shape[1] > 40 and float(q.min()) > -0.28 else o"),
}
NOTICED = {
    "packed sequences run together": "on packed sequences",
    "the state before it forgotten": "in parts, from state to state",
    "another state left behind": "in parts, from state to state",
    "right on what is drawn only": "on what a layer hands to its operator",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results(name: str, judge_submission: Judge) -> None:
    """Results that are cheaper than the right ones."""
    figures = judge_submission(WRONG[name]).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence
    assert figures.fault is Fault.MINER
    assert figures.measured_tokens_per_sec is None
    assert NOTICED.get(name, "on a timed shape") in figures.evidence["reason"]


@pytest.mark.parametrize(
    "key",
    ["tuple(q.shape)", "q.data_ptr()", "tuple(q[0, 0, 0].tolist())"],
    ids=["by shape", "by place", "by the first token"],
)
def test_a_result_that_is_kept_and_given_again(key: str, judge_submission: Judge) -> None:
    """Computed once, and taken from memory from then on."""
    figures = judge_submission("_kept = {}\n" + wrapped(f"o = _kept.setdefault({key}, o)")).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence


def test_a_result_that_is_kept_by_what_went_in_is_no_gain(judge_submission: Judge) -> None:
    """Inputs come twice in the probe that wants the same result for them, and never in a timed trial."""
    keep = """
_kept = {}

def _again(q, o):
    key = tuple(q.flatten().tolist())
    if key in _kept:
        print("GIVEN AGAIN", flush=True)
    return _kept.setdefault(key, o)
"""
    figures = judge_submission(keep + wrapped("o = _again(q, o)")).figures
    assert figures.status is Status.PASSED, figures.evidence
    assert figures.evidence["log_tail"].count("GIVEN AGAIN") == 1


def test_drift_after_the_probes(judge_submission: Judge) -> None:
    """Right in everything that is not timed."""
    figures = judge_submission(
        "_calls = []\n" + wrapped("_calls.append(q)", f"o = o if len(_calls) <= {PROBES} else 1.5 * o")
    ).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence
    assert "tok/s" in figures.evidence["reason"]


def test_a_thousandth_too_large_is_within_the_bound_but_a_percent_is_not(judge_submission: Judge) -> None:
    """Arithmetic that is cheaper because it is coarse."""
    figures = judge_submission(wrapped("o = o * 1.001")).figures
    assert figures.status is Status.PASSED, figures.evidence
    figures = judge_submission(wrapped("o = o * 1.012")).figures
    assert figures.status is Status.INACCURATE, figures.evidence


def test_nan(judge_submission: Judge) -> None:
    """NaN, which no comparison finds too large."""
    figures = judge_submission(wrapped("o[:, -1] = float('nan')")).figures
    assert figures.status is Status.NAN_OR_INF
    assert figures.relative_error is None


def test_random_results_are_inconsistent(judge_submission: Judge) -> None:
    """Noise, in which a shortcut could hide."""
    figures = judge_submission(wrapped("o = o * (1 + 0.003 * torch.randn_like(o))")).figures
    assert figures.status is Status.INCONSISTENT, figures.evidence


def test_exception(judge_submission: Judge) -> None:
    """Fails, and must be told why."""
    figures = judge_submission(wrapped("raise ValueError('no such luck')")).figures
    assert figures.status is Status.CRASHED
    assert "no such luck" in figures.evidence["reason"]


def test_sudden_death(judge_submission: Judge) -> None:
    """Ends its process, and leaves no word."""
    figures = judge_submission("import os\n" + wrapped("os._exit(0)")).figures
    assert figures.status is Status.CRASHED


def test_hang(judge_submission: Judge) -> None:
    """Holds up the queue."""
    # The start of the worker is part of it, and nobody's fault when it takes too long.
    figures = judge_submission("import time\n" + wrapped("time.sleep(3600)"), deadline_s=40.0).figures
    assert figures.status is Status.TIMED_OUT


def test_error_at_import(judge_submission: Judge) -> None:
    """Needs a library that nobody has."""
    figures = judge_submission("import a_library_that_is_not_there").figures
    assert figures.status is Status.BUILD_FAILED
    assert "a_library_that_is_not_there" in figures.evidence["reason"]


def test_out_of_memory(judge_submission: Judge) -> None:
    """Takes the host's memory."""
    figures = judge_submission(wrapped("hog = bytearray(64 * 2**30)")).figures
    assert figures.status is Status.OUT_OF_MEMORY


# The worker's end of the protocol is in the candidate's own process: it may find it and lie.
SHOUT = """
import json, os
def _shout(message):
    for descriptor in range(3, 1024):
        try:
            os.write(descriptor, json.dumps(message).encode())
        except OSError:
            pass
"""


def test_forged_acknowledgement(judge_submission: Judge) -> None:
    """Answers in place of the worker, on every descriptor that it finds."""
    figures = judge_submission(SHOUT + wrapped("_shout({'nonce': '0' * 32})")).figures
    assert figures.status is Status.TAMPERED, figures.evidence


def test_an_answer_that_the_referee_trips_over(judge_submission: Judge) -> None:
    """A failure of another kind than any; a referee that ends would be nobody's fault."""
    figures = judge_submission("""
from kernels.harness import wire
_send = wire.send
wire.send = lambda c, m, d=(): _send(c, {"failed": [], "reason": "x"} if "nonce" in m else m, d)
""").figures
    assert figures.status is Status.TAMPERED, figures.evidence


def test_a_name_of_a_process_that_is_no_text(judge_submission: Judge) -> None:
    """The referee looks for a submission's processes, and finds names that it cannot read."""
    figures = judge_submission("""
import ctypes
ctypes.CDLL(None).prctl(15, b"\\xff\\xfe", 0, 0, 0)
""").figures
    assert figures.status is Status.PASSED, figures.evidence


def test_a_log_that_is_turned_back_for_ever(judge_submission: Judge) -> None:
    """Processes that are left behind turn back the file that the referee reads."""
    figures = judge_submission("""
import os
os.write(1, b"x" * 2**25)
for _ in range(3):
    if os.fork() == 0:
        while True:
            os.lseek(1, 0, 0)
raise ValueError("done")
""").figures
    assert figures.status is Status.BUILD_FAILED, figures.evidence
    assert len(figures.evidence["log_tail"]) <= 4000


# What stands between the operator and the referee is code of the candidate's process: it may replace it.
EARLY = """
import select
from kernels.harness import wire
_receive, _send = wire.receive, wire.send

def _answer_first(connection, **options):
    received = _receive(connection, **options)
    if "nonce" in received.message:
        _send(connection, {"nonce": received.message["nonce"]})
        # Computes once the referee has looked, however late that is.
        select.select([connection], [], [], 60)
    return received

wire.receive = _answer_first
"""
ONCE = """
wire.send = lambda *arguments: None if "nonce" in arguments[1] else _send(*arguments)
"""
NEVER = """
from kernels.harness import rooms
rooms.HostRoom.leave = lambda room, outputs: rooms.Output()
"""
LATER = """
import threading, time
from kernels.harness import rooms

def _leave(room, outputs):
    target, result = room._target, outputs[0].clone()
    target.zero_()

    def write():
        time.sleep(0.05)
        target.copy_(result)

    threading.Thread(target=write).start()
    return rooms.Output()

rooms.HostRoom.leave = _leave
"""


@pytest.mark.parametrize("attack", [EARLY, EARLY + ONCE, NEVER], ids=["twice", "once", "and nothing else"])
def test_done_said_before_the_result_is_there(attack: str, judge_submission: Judge) -> None:
    """With the nonce that it takes to be believed."""
    figures = judge_submission(attack).figures
    assert figures.status is Status.TAMPERED, figures.evidence
    assert "not written when it said done" in figures.evidence["reason"]
    assert figures.measured_tokens_per_sec is None


def test_a_thread_that_writes_the_result_later(judge_submission: Judge) -> None:
    """Says that it is done, and computes while its output is taken."""
    figures = judge_submission(LATER).figures
    assert figures.status in (Status.TAMPERED, Status.WRONG_OUTPUT), figures.evidence
    assert figures.measured_tokens_per_sec is None


CLOCKS = {
    "plain": "import time\ntime.perf_counter = time.monotonic = time.time = lambda: 0.0\n",
    "assembled from strings": "import time\n"
    "for _name in ('perf' + '_counter', 'mono' + 'tonic', 'ti' + 'me'):\n"
    "    setattr(time, _name, lambda: 0.0)\n",
    "in the worker's own code": "import time\n"
    "from kernels.harness import rooms, wire\n"
    "class _Still:\n"
    "    perf_counter = monotonic = time = staticmethod(lambda: 0.0)\n"
    "rooms.time = wire.time = _Still\n",
}


@pytest.mark.parametrize("name", CLOCKS)
def test_clock_patches_change_nothing(name: str, judge_submission: Judge) -> None:
    """Stops every clock that it can reach."""
    figures = judge_submission(
        CLOCKS[name] + wrapped("time.sleep(0.4 if q.shape[1] >= 128 else 0.0)"), claimed=10_000.0
    ).figures
    assert figures.status is Status.BELOW_CLAIM, figures.evidence
    # As if of the shorter of the two lengths, 128 and 192.
    assert min(figures.evidence["trial_s"]) >= 0.4 * 128 / 192
    # On a CPU nobody is to blame for a claim that was made for a GPU.
    assert figures.fault is Fault.NOBODY


SPIN = """
import threading

def _spin():
    while True:
        sum(range(1000))

threading.Thread(target=_spin, daemon=True).start()
"""
TIMERS = """
import ctypes, signal, struct
signal.signal(signal.SIGCONT, lambda *_: None)
_libc = ctypes.CDLL(None)
_timers = [ctypes.c_void_p() for _ in range(16)]
# struct sigevent: no value, SIGCONT, SIGEV_SIGNAL.
_event = ctypes.create_string_buffer(struct.pack("=QiiQ", 0, 18, 0, 0), 64)
for _timer in _timers:
    assert _libc.timer_create(1, _event, ctypes.byref(_timer)) == 0

def _arm():
    # Out of step: a SIGSTOP ends for good those timers whose signal it finds pending.
    for _number, _timer in enumerate(_timers, start=1):
        _libc.timer_settime(_timer, 0, struct.pack("=qqqq", 0, 20_000_000, 0, _number * 21_250_000), None)

_arm()
"""
STARTS = """
import ctypes, os, signal
with open("/tmp/link", "wb") as _file:
    _file.write({program!r})
os.chmod("/tmp/link", 0o755)
if os.fork() == 0:
    # Whoever loses its parent is this one's, which is told of no end.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(3):
        if os.fork() == 0:
            os.execv("/tmp/link", ["/tmp/link"])
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("more", ["", wrapped("_arm()")], ids=["once", "after each call"])
def test_timers_that_wake_it_between_its_trials(more: str, judge_submission: Judge) -> None:
    """Has the kernel send it SIGCONT, to compute while it is stopped, or in a rival's turn."""
    figures = judge_submission(TIMERS + SPIN + more).figures
    assert (figures.status, figures.fault) == (Status.TAMPERED, Fault.MINER), figures.evidence
    assert figures.evidence["reason"].startswith("between its trials it ")


@pytest.mark.timeout(600)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")
def test_a_chain_of_processes_that_wake_each_other_between_its_trials(judge_submission: Judge) -> None:
    """Starts processes that fork and end so quickly that no list of them is right, woken by timers."""
    code = STARTS.format(program=chain_of_forks(wakes_itself=True)) + SPIN
    figures = judge_submission(code, deadline_s=240.0).figures
    assert (figures.status, figures.fault) == (Status.TAMPERED, Fault.MINER), figures.evidence
    assert figures.evidence["reason"].startswith("between its trials ")


@pytest.mark.timeout(600)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")
def test_a_chain_of_processes_is_stopped_or_found(judge_submission: Judge) -> None:
    """The same without timers: each sends SIGCONT to all others, and is stopped only if it is hit in time."""
    code = STARTS.format(program=chain_of_forks(wakes_itself=False)) + SPIN
    figures = judge_submission(code, deadline_s=240.0).figures
    assert figures.status in (Status.PASSED, Status.TAMPERED), figures.evidence


def test_printed_verdicts_are_only_text(judge_submission: Judge) -> None:
    """Prints the verdict that it would like."""
    figures = judge_submission(
        wrapped("o = v", 'print(\'{"figures": {"status": "passed"}}\', flush=True)')
    ).figures
    assert figures.status is Status.WRONG_OUTPUT
    assert "passed" in figures.evidence["log_tail"]


def test_a_verdict_that_is_too_large_to_be_handed_in(judge_submission: Judge) -> None:
    """What a submission writes goes into the verdict, which the API would refuse, and nobody be told."""
    wide = "\N{MATHEMATICAL BOLD SMALL A}"
    names = "\n".join(f"def gla_{number}_{300 * wide}(): pass" for number in range(41))
    prints = """
import os
for _ in range(4000):
    os.write(1, b"\\xff\\"")
"""
    report = judge_submission(names + prints)
    figures = report.figures
    assert figures.status is Status.PASSED, figures.evidence
    assert len(figures.evidence["import_notes"]) == 21
    assert figures.evidence["log_tail"].endswith('?"?"')
    # A whole evaluation on a GPU, at the shortest length.
    most_seeds = {**figures.evidence, "seeds": (24 + 2) * MAX_CALLS * [2**32 - 1], "reason": 4000 * '"'}
    largest = figures.model_copy(update={"evidence": most_seeds})
    assert len(largest.model_dump_json()) < MAX_BODY_BYTES - 4096


def test_secrets_are_out_of_reach(judge_submission: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for tokens and wallets, in its own environment and in that of others."""
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_very_secret")
    figures = judge_submission(
        "import os, glob\n"
        "for path in glob.glob('/proc/*/environ'):\n"
        "    print(open(path, 'rb').read())\n"
        "print(dict(os.environ), os.listdir('/'), glob.glob('/*/.bitt*'), glob.glob('/*/*/.bitt*'))\n"
    ).figures
    assert figures.status is Status.PASSED, figures.evidence
    assert "ghp_very_secret" not in figures.evidence["log_tail"]


@pytest.mark.parametrize(
    ("suffix", "status"),
    [
        ("import fla.ops.gla", Status.IMPORTS_FORBIDDEN),
        ("from ..kda import chunk", Status.IMPORTS_FORBIDDEN),
        ("import importlib; importlib.import_module('fla.ops.g' + 'la')", Status.IMPORTS_FORBIDDEN),
        ("__import__('fla.ops.gla')", Status.IMPORTS_FORBIDDEN),
        ("def broken(:", Status.BUILD_FAILED),
    ],
)
def test_static_rules(suffix: str, status: Status, judge_submission: Judge) -> None:
    """Takes the forbidden operators instead of writing one."""
    assert judge_submission(suffix).figures.status is status


def test_missing_file(judge_submission: Judge) -> None:
    """Leaves one of the five files out."""
    figures = judge_submission(replace={"gate.py": None}).figures
    assert figures.status is Status.IMPORTS_MISSING
    assert "gate.py" in figures.evidence["reason"]


@pytest.mark.parametrize("name", ["chunk.py", "helpers.py"])
def test_a_forbidden_kernel_pasted_under_other_names(name: str, judge_submission: Judge) -> None:
    """Brings the forbidden operator as text of its own."""
    module, kernel = "fla.ops.kda.gate", "kda_gate_fwd_kernel"
    text = forbidden_sources()[module]
    start = text.rindex("@triton.jit", 0, text.index(f"def {kernel}"))
    body = text[start : text.index("\n\n\n", start)]
    pasted = body.replace(kernel, "my_gate").replace("b_", "mine_")
    code = "import triton\nimport triton.language as tl\n\n" + pasted
    if name == "chunk.py":
        code = export_files("chunk")[name] + code
    figures = judge_submission(replace={name: code}).figures
    assert (figures.status, figures.fault) == (Status.IMPORTS_FORBIDDEN, Fault.MINER)
    assert f"my_gate is a copy of {module}.{kernel}" in figures.evidence["reason"]
    assert figures.evidence["reason"].startswith(f"{name}: line")


def test_copy_of_an_earlier_submission(judge_submission: Judge) -> None:
    """Submits another miner's kernel under other names."""
    files = export_files("chunk")
    original = fingerprint(files)
    copy = files["chunk.py"].replace("has_entering", "is_entered") + "\n# mine\n"
    report = judge_submission(replace={"chunk.py": copy}, known_fingerprints={original: 7})
    assert report.figures.status is Status.DUPLICATE
    assert report.figures.fault is Fault.NOBODY
    assert "submission 7" in report.figures.evidence["reason"]
    assert report.figures.evidence["duplicate_of"] == 7
