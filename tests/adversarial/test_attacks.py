"""Every attack with the verdict that it must get, through the real sandbox."""

import pytest

from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge

WRAP = """
_plain_chunk_quasar = chunk_quasar

def chunk_quasar(q, k, v, beta, **kwargs):
    o, state = _plain_chunk_quasar(q, k, v, beta, **kwargs)
{body}
    return o, state
"""


def wrapped(*lines: str) -> str:
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
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results(name: str, judge_submission: Judge) -> None:
    figures = judge_submission(WRONG[name]).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence
    assert figures.fault is Fault.MINER
    assert figures.measured_tokens_per_sec is None


def test_a_result_that_is_kept_and_given_again(judge_submission: Judge) -> None:
    figures = judge_submission("_kept = {}\n" + wrapped("o = _kept.setdefault(tuple(q.shape), o)")).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence


def test_drift_after_some_calls(judge_submission: Judge) -> None:
    figures = judge_submission(
        "_calls = []\n" + wrapped("_calls.append(0)", "o = o if len(_calls) < 8 else 1.5 * o")
    ).figures
    assert figures.status is Status.WRONG_OUTPUT, figures.evidence


def test_a_thousandth_too_large_is_within_the_bound_but_a_percent_is_not(judge_submission: Judge) -> None:
    figures = judge_submission(wrapped("o = o * 1.012")).figures
    assert figures.status in (Status.INACCURATE, Status.WRONG_OUTPUT), figures.evidence


def test_nan(judge_submission: Judge) -> None:
    figures = judge_submission(wrapped("o[:, -1] = float('nan')")).figures
    assert figures.status is Status.NAN_OR_INF
    assert figures.relative_error is None


def test_random_results_are_inconsistent(judge_submission: Judge) -> None:
    figures = judge_submission(wrapped("o = o * (1 + 0.003 * torch.randn_like(o))")).figures
    assert figures.status is Status.INCONSISTENT, figures.evidence


def test_exception(judge_submission: Judge) -> None:
    figures = judge_submission(wrapped("raise ValueError('no such luck')")).figures
    assert figures.status is Status.CRASHED
    assert "no such luck" in figures.evidence["reason"]


def test_sudden_death(judge_submission: Judge) -> None:
    figures = judge_submission("import os\n" + wrapped("os._exit(0)")).figures
    assert figures.status is Status.CRASHED


def test_hang(judge_submission: Judge) -> None:
    figures = judge_submission("import time\n" + wrapped("time.sleep(3600)"), deadline_s=10.0).figures
    assert figures.status is Status.TIMED_OUT


def test_error_at_import(judge_submission: Judge) -> None:
    figures = judge_submission("import a_library_that_is_not_there").figures
    assert figures.status is Status.BUILD_FAILED
    assert "a_library_that_is_not_there" in figures.evidence["reason"]


def test_out_of_memory(judge_submission: Judge) -> None:
    figures = judge_submission(wrapped("hog = bytearray(64 * 2**30)")).figures
    assert figures.status is Status.OUT_OF_MEMORY


# The worker's end of the protocol is in the candidate's own process: it may find it and lie.
SHOUT = """
import json, os
def _shout(message):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, json.dumps(message).encode())
        except OSError:
            pass
"""


def test_forged_acknowledgement(judge_submission: Judge) -> None:
    figures = judge_submission(SHOUT + wrapped("_shout({'nonce': '0' * 32})")).figures
    assert figures.status is Status.TAMPERED, figures.evidence


def test_early_acknowledgement_with_the_stolen_nonce(judge_submission: Judge) -> None:
    attack = """
def _nonce():
    try:
        raise ValueError
    except ValueError as error:
        frame = error.__traceback__.tb_frame
    while frame is not None:
        for value in list(frame.f_locals.values()):
            message = getattr(value, "message", value)
            if isinstance(message, dict) and "nonce" in message:
                return message["nonce"]
        frame = frame.f_back
"""
    figures = judge_submission(
        SHOUT + attack + wrapped("_shout({'nonce': _nonce()})", "import time; time.sleep(0.3)")
    ).figures
    # Either the import rules see the way to the frames, or the output is still poison when the clock stops.
    assert figures.status in (Status.IMPORTS_FORBIDDEN, Status.TAMPERED, Status.NAN_OR_INF), figures.evidence
    assert figures.measured_tokens_per_sec is None


def test_clock_patches_change_nothing(judge_submission: Judge) -> None:
    figures = judge_submission(
        "import time\ntime.perf_counter = time.monotonic = time.time = lambda: 0.0\n"
        + wrapped("time.sleep(0.4)"),
        claimed=10_000.0,
    ).figures
    assert figures.status is Status.BELOW_CLAIM, figures.evidence
    # As if of the shorter of the two lengths, 128 and 192.
    assert min(figures.evidence["trial_s"]) >= 0.4 * 128 / 192
    # On a CPU nobody is to blame for a claim that was made for a GPU.
    assert figures.fault is Fault.NOBODY


def test_printed_verdicts_are_only_text(judge_submission: Judge) -> None:
    figures = judge_submission(
        wrapped("o = v", 'print(\'{"figures": {"status": "passed"}}\', flush=True)')
    ).figures
    assert figures.status is Status.WRONG_OUTPUT
    assert "passed" in figures.evidence["log_tail"]


def test_secrets_are_out_of_reach(judge_submission: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert judge_submission(suffix).figures.status is status


def test_missing_file(judge_submission: Judge) -> None:
    figures = judge_submission(replace={"gate.py": None}).figures
    assert figures.status is Status.IMPORTS_MISSING
    assert "gate.py" in figures.evidence["reason"]


def test_copy_of_an_earlier_submission(judge_submission: Judge) -> None:
    from kernels.export import export_files
    from protocol.fingerprint import fingerprint
    from protocol.forks import TARGET_FILES

    files = export_files("chunk")
    original = fingerprint({name: files[name] for name in TARGET_FILES})
    copy = files["chunk.py"].replace("has_entering", "is_entered") + "\n# mine\n"
    report = judge_submission(replace={"chunk.py": copy}, known_fingerprints={original: 7})
    assert report.figures.status is Status.DUPLICATE
    assert report.figures.fault is Fault.NOBODY
    assert "submission 7" in report.figures.evidence["reason"]
