"""Modules run through a real Ray cluster on this host."""

import os
import platform
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from node import ray_run
from node.processes import module_argv, worker_environment
from tests.processes import command_lines
from tests.ray_cluster import RAY_VERSION, ray_cluster
from tests.waiting import until


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster(gpus=1) as address:
        yield address


def run(address: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        module_argv("node.ray_run", address, *arguments),
        input=given,
        capture_output=True,
        env=worker_environment(),
        timeout=120,
        check=False,
    )


def test_a_module_reads_answers_and_ends_as_if_it_were_here(address: str) -> None:
    done = run(address, "0", "json.tool", "--compact", given='{"o": [1, "ä"]}'.encode())
    assert (done.returncode, done.stdout, done.stderr) == (0, b'{"o":[1,"\\u00e4"]}\n', b"")
    done = run(address, "0", "json.tool", given=b"{")
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Expecting property name" in done.stderr


def test_a_module_has_a_gpu_to_itself(address: str) -> None:
    done = run(
        address, "1", "timeit", "-n1", "-r1", "-s", "import os", "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    assert done.stdout.splitlines()[0] == b"0"


@contextmanager
def a_server(address: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], list[int]]]]:
    """Have a module run that does not end by itself; gives who asked for it, and how to look for it."""
    words = ["http.server", "--directory", str(folder), "0"]
    # Ray's interpreter may have another name.
    started_as = "\0".join(["", *module_argv(*words)[1:], ""]).encode()

    def found() -> list[int]:
        return [pid for pid, line in command_lines().items() if line.endswith(started_as)]

    with subprocess.Popen(
        module_argv("node.ray_run", address, "0", *words),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=worker_environment(),
    ) as asking:
        try:
            until(found, lambda: "the module did not start", timeout_s=120)
            yield asking, found
        finally:
            asking.kill()


def test_a_module_ends_with_the_one_that_asked_for_it(address: str, tmp_path: Path) -> None:
    with a_server(address, tmp_path) as (asking, found):
        asking.kill()
        until(lambda: not found(), lambda: "the module is still there", timeout_s=120)


def test_a_module_that_is_killed_is_told_apart(address: str, tmp_path: Path) -> None:
    with a_server(address, tmp_path) as (asking, found):
        os.kill(found()[0], signal.SIGKILL)
        assert asking.wait(120) not in (0, 1)


def test_a_cluster_that_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"{name}-{'0' * 40}")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "right"))
    with ray_cluster() as address:
        assert run(address, "0", "json.tool", given=b"{}").stdout == b"{}\n"
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "wrong"))
        done = run(address, "0", "json.tool", given=b"{}")
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Ray at " in done.stderr.splitlines()[-1]


def test_another_version_over_there_is_a_sentence() -> None:
    said = list(ray_run.run_here("0.0.9 (rules 1)", "json.tool", [], b"{}"))
    assert said[-1] == ("status", 1)
    assert said[0][0] == "line"
    assert "and 0.0.9 (rules 1) is needed: install that there" in str(said[0][1])


def test_a_cluster_of_another_version_of_ray_is_a_sentence() -> None:
    with ray_cluster(version="2.9.9") as address:
        done = run(address, "0", "json.tool", given=b"{}")
    assert done.returncode == 1
    assert done.stdout == b""
    (said,) = done.stderr.decode().splitlines()
    assert said.startswith(f"Ray at {address}: RuntimeError: Version mismatch")
    assert f"Ray: 2.9.9 Python: {platform.python_version()}" in said
    assert f"Ray: {RAY_VERSION} Python" in said


def test_a_cluster_that_is_not_there_is_a_sentence() -> None:
    done = run("127.0.0.1:1", "0", "json.tool", given=b"{}")
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Ray at 127.0.0.1:1: " in done.stderr.splitlines()[-1]


def test_a_cluster_that_goes_away_takes_what_it_ran_with_it(tmp_path: Path) -> None:
    with ExitStack() as cluster:
        address = cluster.enter_context(ray_cluster())
        with a_server(address, tmp_path) as (asking, found):
            cluster.close()
            assert asking.wait(120) != 0
            until(lambda: not found(), lambda: "the module is still there", timeout_s=120)
