"""The child's side of a worker process: one JSON document per line, standard library only."""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from protocol.errors import QuasarError

PARENT_VARIABLE = "QUASAR_PARENT_PID"
"""Set by the parent; a child whose parent is another process already has been orphaned."""
PR_SET_PDEATHSIG = 1
EXIT_BUG = 70
EXIT_ORPHANED = 75

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux, prctl(2)).

    Called by the child itself: code run between fork and exec is not safe in a parent with threads. A parent
    that died before this call is noticed through PARENT_VARIABLE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    expected = os.environ.get(PARENT_VARIABLE)
    if expected is not None and expected.isdigit() and os.getppid() != int(expected):
        os._exit(EXIT_ORPHANED)


def take_stdout() -> int:
    """A private copy of stdout; whatever prints from now on lands on stderr and cannot spoil an answer."""
    answers = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    return answers


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer calls until stdin ends, one at a time.

    A handler that raises QuasarError refuses that one call (WorkerRefused in the parent); any other exception
    ends the process with exit code 70, because a worker with a bug or a broken device must be replaced.
    """
    die_with_parent()
    # Ctrl-C reaches the whole terminal; the parent alone decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = take_stdout()
    _write(answers, {"ready": sorted(handlers)})
    with os.fdopen(0, "rb", closefd=False) as calls:
        for line in calls:
            call = json.loads(line)
            _write(answers, {"id": call["id"], **_answer(handlers, call)})


def _answer(handlers: Mapping[str, Handler], call: dict[str, Any]) -> dict[str, Any]:
    handler = handlers.get(call["method"])
    if handler is None:
        return {
            "refused": f"the worker has no method {call['method']!r}: it knows {', '.join(sorted(handlers))}"
        }
    try:
        return {"result": handler(call["params"])}
    except QuasarError as error:
        return {"refused": str(error)}
    except Exception:  # noqa: BLE001 - the process's edge: told to the parent by the exit code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_BUG)


def _write(descriptor: int, document: dict[str, Any]) -> None:
    view = memoryview(json.dumps(document, separators=(",", ":")).encode() + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]
