"""Run a module of ours on another host: `python -m node.ray_run ADDRESS GPUS MODULE [ARGUMENT ...]`.

A host of a Ray cluster (https://docs.ray.io) that has so many GPUs free runs it. Standard input goes there,
every line on standard error comes back at once, standard output in the end, and this process ends with the
module's exit status. When this process ends early, so does the module.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Final, Literal

from node.processes import MAX_LINE_CHARS, kill_group, module_argv, worker_environment
from node.worker_main import PARENT_VARIABLE, die_with_parent, take_stdout
from protocol.rules import RULES_VERSION

MAX_ANSWER_BYTES: Final = 64 * 2**20
CONNECT_S: Final = 30
"""A cluster that does not take a connection in this time is away."""

Said = tuple[Literal["line"], str] | tuple[Literal["answer"], bytes] | tuple[Literal["status"], int]


def main() -> int:
    """Have the module run; its exit status, or 1 with a sentence when no host ran it to its end."""
    die_with_parent()
    answers = take_stdout()
    address, gpus, module, *arguments = sys.argv[1:]
    document = sys.stdin.buffer.read()
    import ray

    status = 1
    try:
        _expect_somebody(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        task = ray.remote(num_gpus=int(gpus), num_cpus=1, max_retries=0, num_returns="streaming")(run_here)
        for reference in task.remote(own_version(), module, arguments, document):
            said: Said = ray.get(reference)
            match said:
                case ("line", line):
                    print(line, file=sys.stderr, flush=True)
                case ("answer", answer):
                    with os.fdopen(answers, "wb") as stream:
                        stream.write(answer)
                case ("status", code):
                    status = code
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        # RuntimeError: the cluster has another version of Ray or of Python.
        said_of_it = " ".join(str(error).split())
        print(f"Ray at {address}: {type(error).__name__}: {said_of_it}", file=sys.stderr, flush=True)
    return status


def _expect_somebody(address: str) -> None:
    """Raise OSError when nobody listens there, which Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def own_version() -> str:
    """What both hosts must have alike."""
    return f"{metadata.version('quasar-node')} (rules {RULES_VERSION})"


def run_here(version: str, module: str, arguments: Sequence[str], document: bytes) -> Iterator[Said]:
    """Run the module on this host; gives its lines, then its answer, then its exit status."""
    if version != own_version():
        has = f"{socket.gethostname()} has quasar-node {own_version()}"
        yield "line", f"{has}, and {version} is needed: install that there"
        yield "status", 1
        return
    # Files, so that nobody waits for anybody: only the lines come through a pipe.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as answer:
        given.write(document)
        given.seek(0)
        with subprocess.Popen(
            module_argv(module, *arguments),
            stdin=given,
            stdout=answer,
            stderr=subprocess.PIPE,
            env=worker_environment({PARENT_VARIABLE: str(os.getpid())}),
            start_new_session=True,
        ) as process:
            assert process.stderr is not None
            try:
                while line := process.stderr.readline(MAX_LINE_CHARS):
                    yield "line", line.decode(errors="replace").rstrip("\n")
                process.wait()
            finally:
                kill_group(process)
        answer.seek(0)
        yield "answer", answer.read(MAX_ANSWER_BYTES)
        yield "status", process.returncode


if __name__ == "__main__":
    sys.exit(main())
