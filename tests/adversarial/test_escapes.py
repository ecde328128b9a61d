"""Attacks on what surrounds the measurement: other processes, files, the network, the result's type."""

import os

import pytest

from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge
from tests.adversarial.test_attacks import wrapped
from tests.processes import command_lines
from tests.waiting import until

LEFT_BEHIND = ("sleep", str(86_400 + os.getpid()))
"""What a process left behind would be: found again by its seconds, which no other run has."""


DAEMON = f"""
import os, shutil
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("LEFT BEHIND", shutil.which("sleep"), flush=True)
        os.execvp("sleep", {LEFT_BEHIND})
    os._exit(0)
"""


def assert_left_behind_is_ended(judge: Judge) -> None:
    """Have a submission judged that starts a daemon."""
    figures = judge(DAEMON).figures
    assert figures.status is Status.PASSED, figures.evidence
    assert "LEFT BEHIND /" in figures.evidence["log_tail"]
    line = "".join(f"{word}\0" for word in LEFT_BEHIND).encode()
    # The kernel ends the rest of a namespace in its own time, after the process that the referee waits for.
    until(lambda: line not in command_lines().values(), lambda: f"{' '.join(LEFT_BEHIND)} is still there")


def attempt(action: str) -> str:
    """Code that tries `action` (an expression) at import, and prints what came of it."""
    return f"""
import ctypes, glob, os, socket
try:
    print("ATTEMPT WORKED", {action})
except Exception as error:
    print("ATTEMPT FAILED", type(error).__name__)
"""


FUTILE = {
    "network": "socket.create_connection(('1.1.1.1', 53), 2)",
    "name service": "socket.getaddrinfo('example.com', 443)",
    "writing its own files": "open(__file__, 'a')",
    "writing the interpreter": "open(os.__file__, 'a')",
    "writing to the root": "open('/left', 'w')",
    "another user": "os.setuid(0)",
    "mounting": "1 / (ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0)",
    "tracing its parent": "1 / (ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0)",
}


def test_what_cannot_be_reached(judge_submission: Judge) -> None:
    """None of it works, and trying is no fault: the kernel is right."""
    figures = judge_submission("\n".join(attempt(action) for action in FUTILE.values())).figures
    assert figures.status is Status.PASSED, figures.evidence
    tail = figures.evidence["log_tail"]
    assert tail.count("ATTEMPT FAILED") == len(FUTILE), tail
    assert "ATTEMPT WORKED" not in tail


def test_a_process_left_behind_is_ended(judge_submission: Judge) -> None:
    """A daemon that would disturb, or read, the next submission's run."""
    assert_left_behind_is_ended(judge_submission)


def test_killing_everything_kills_itself(judge_submission: Judge) -> None:
    """Signals to every process that it can reach."""
    figures = judge_submission(
        "import os, signal\n" + wrapped("os.kill(-1, signal.SIGKILL)", "os.abort()")
    ).figures
    assert figures.status is Status.CRASHED, figures.evidence
    assert figures.fault is Fault.MINER


def test_nothing_of_one_is_there_for_the_next(judge_submission: Judge) -> None:
    """A cache with other code in it, or results: in the folder of Triton, or wherever else may be written."""
    leave = """
import os
for _folder in (os.environ["TRITON_CACHE_DIR"], "/tmp", "/dev/shm", os.path.expanduser("~")):
    os.makedirs(_folder, exist_ok=True)
    open(_folder + "/left_for_the_next", "w").close()
print("LEFT", flush=True)
"""
    look = """
import os
_found = [_folder for _folder, _, _files in os.walk("/") if "left_for_the_next" in _files]
print("FOUND", _found, flush=True)
"""
    for code, said in ((leave + look, "/triton"), (look, "FOUND []")):
        # To walk through all that can be seen takes long where much of it is installed.
        figures = judge_submission(code, deadline_s=120.0).figures
        assert figures.status is Status.PASSED, figures.evidence
        assert said in figures.evidence["log_tail"]


def test_truncating_shared_memory(judge_submission: Judge) -> None:
    """A referee that maps what has become shorter would die of SIGBUS."""
    figures = judge_submission(
        "import os\n"
        + wrapped(
            "for descriptor in range(3, 256):",
            "    try:",
            "        os.ftruncate(descriptor, 0)",
            "    except PermissionError:",
            "        print('SEALED', flush=True)",
            "    except OSError:",
            "        pass",
        )
    ).figures
    assert figures.status is Status.PASSED, figures.evidence
    assert "SEALED" in figures.evidence["log_tail"]


RESULTS = {
    "another type of number": "o = o.double()",
    "another shape": "o = o[:, 1:]",
    "no tensor": "o = None",
    "no final state": "state = None",
    "a final state of another type": "state = None if state is None else state.double()",
    "a tensor without values": "o = o.to('meta')",
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_another_kind(name: str, judge_submission: Judge) -> None:
    """Hands over something that is no result, or not all of it."""
    figures = judge_submission(wrapped(RESULTS[name])).figures
    assert figures.status is Status.CRASHED, figures.evidence
    assert figures.fault is Fault.MINER


def test_a_lazy_tensor_is_refused(judge_submission: Judge) -> None:
    """A subclass that answers for itself could put its work off until the clock has stopped."""
    figures = judge_submission(
        """
import time

class Lazy(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        time.sleep(0.5)
        return super().__torch_function__(function, types, args, kwargs or {})
"""
        + wrapped("o = o.as_subclass(Lazy)")
    ).figures
    assert figures.status is Status.CRASHED, figures.evidence
    assert "not Lazy" in figures.evidence["reason"]


WRONG_IN_OTHER_WAYS = {
    "one token for all": wrapped("o = o[:, :1].expand_as(o)"),
    "looks at the next token": wrapped("o[:, :-1] += 0.1 * v[:, 1:]"),
    "looks at the next token a little": wrapped(
        "near = torch.nn.functional.normalize(o[:, 1:], dim=-1)",
        "o[:, :-1] += 0.007 * o[:, :-1].norm(dim=-1, keepdim=True) * near",
    ),
    "three bits of mantissa": wrapped("o = o.to(torch.float8_e4m3fn).to(o.dtype)"),
    "the result of the call before": "_before = {}\n"
    + wrapped("o, _before[tuple(q.shape)] = _before.get(tuple(q.shape), o), o"),
}


@pytest.mark.parametrize("name", WRONG_IN_OTHER_WAYS)
def test_wrong_in_other_ways(name: str, judge_submission: Judge) -> None:
    """Results that are almost right."""
    figures = judge_submission(WRONG_IN_OTHER_WAYS[name]).figures
    assert figures.status in (Status.WRONG_OUTPUT, Status.INACCURATE), figures.evidence
    assert figures.measured_tokens_per_sec is None
