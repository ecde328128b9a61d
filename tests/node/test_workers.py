"""Worker processes: real children that crash, hang and flood."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from node.workers import WorkerFailed, WorkerProcess, WorkerRefused, run_json_process, worker_environment
from protocol.errors import QuasarError

ROOT = Path(__file__).parents[2]
Make = Callable[..., WorkerProcess]


@pytest.fixture
async def make_worker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr("node.workers.BACKOFF_START_S", 0.01)
    workers: list[WorkerProcess] = []

    def make(*args: str, **options: object) -> WorkerProcess:
        lines: list[str] = []
        env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'node'}"}
        worker = WorkerProcess(
            "worker_child",
            args=args,
            env=env,
            on_stderr_line=lines.append,
            **options,  # type: ignore[arg-type]
        )
        worker.lines = lines  # type: ignore[attr-defined]
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        await worker.close()


async def gone(pid: int) -> bool:
    """True when the process ends within a minute (a zombie of ours counts as alive)."""
    for _ in range(1200):
        stat = Path(f"/proc/{pid}/stat")
        try:
            # An orphan that nobody reaps in a container is dead all the same.
            if stat.read_text().rpartition(")")[2].split()[0] == "Z" and os.getpid() != int(
                stat.read_text().rpartition(")")[2].split()[1]
            ):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_calls_are_answered_and_the_child_is_kept(make_worker: Make) -> None:
    worker = make_worker()
    assert not worker.is_ready
    assert await worker.call("echo", {"x": [1, None, "ü"]}, 20) == {"x": [1, None, "ü"]}
    pid = worker.pid
    assert worker.is_ready
    answers = await asyncio.gather(*(worker.call("echo", {"n": n}, 20) for n in range(20)))
    assert [answer["n"] for answer in answers] == list(range(20))
    assert worker.pid == pid
    assert "a library prints on stdout" in worker.lines  # type: ignore[attr-defined]


async def test_refusal_is_the_childs_own_sentence_and_leaves_it_alive(make_worker: Make) -> None:
    worker = make_worker()
    await worker.start()
    pid = worker.pid
    with pytest.raises(WorkerRefused, match="cannot do magic") as caught:
        await worker.call("refuse", {"what": "magic"}, 20)
    assert isinstance(caught.value, QuasarError)
    with pytest.raises(WorkerRefused, match="no method 'fly': it knows crash, die"):
        await worker.call("fly", {}, 20)
    assert worker.pid == pid


async def test_crash_is_told_with_the_last_words_and_the_next_call_works(make_worker: Make) -> None:
    worker = make_worker()
    with pytest.raises(
        WorkerFailed, match=r"ended with exit code 70; .*ZeroDivisionError: device is poisoned"
    ):
        await worker.call("crash", {}, 20)
    assert not worker.is_ready
    with pytest.raises(WorkerFailed, match="killed by signal 9"):
        await worker.call("die", {}, 20)
    assert await worker.call("echo", {}, 20) == {}


async def test_death_between_calls_is_noticed(make_worker: Make) -> None:
    worker = make_worker()
    await worker.start()
    assert worker.pid is not None
    old = worker.pid
    os.kill(old, signal.SIGKILL)
    async with asyncio.timeout(60):
        while worker.is_ready:
            await asyncio.sleep(0.01)
    assert await worker.call("echo", {"again": 1}, 20) == {"again": 1}
    assert worker.pid != old


async def test_hang_is_killed_with_its_grandchildren(make_worker: Make) -> None:
    worker = make_worker()
    await worker.start()
    pid = worker.pid
    with pytest.raises(WorkerFailed, match="did not finish hang within 5 s and was killed"):
        await worker.call("hang", {}, 5)
    assert pid is not None
    assert await gone(pid)
    (line,) = [line for line in worker.lines if line.startswith("grandchild")]  # type: ignore[attr-defined]
    assert await gone(int(line.split()[1]))
    assert await worker.call("echo", {}, 20) == {}


async def test_cancelled_call_kills_the_child(make_worker: Make) -> None:
    worker = make_worker()
    await worker.start()
    pid = worker.pid
    call = asyncio.create_task(worker.call("hang", {}, 60))
    await asyncio.sleep(0.2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert pid is not None
    assert await gone(pid)
    assert await worker.call("echo", {}, 20) == {}


async def test_kill_fails_the_running_call(make_worker: Make) -> None:
    worker = make_worker()
    await worker.start()
    call = asyncio.create_task(worker.call("hang", {}, 60))
    await asyncio.sleep(0.2)
    await worker.kill()
    with pytest.raises(WorkerFailed, match="killed by signal 9"):
        await call


async def test_several_megabytes_pass_both_ways(make_worker: Make) -> None:
    worker = make_worker()
    text = "z" * 8_000_000
    assert (await worker.call("echo", {"text": text}, 60))["text"] == text
    assert len((await worker.call("flood", {"bytes": 3_000_000}, 60))["text"]) == 3_000_000
    lines: list[str] = worker.lines  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while lines[-1] != "end of flood":
            await asyncio.sleep(0.05)
    assert max(map(len, lines)) == 4096


async def test_answer_above_the_limit_ends_the_child(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.workers.MAX_LINE_BYTES", 10_000)
    worker = make_worker()
    with pytest.raises(WorkerFailed, match="answered more than 10000 bytes"):
        await worker.call("flood", {"bytes": 100_000}, 20)
    assert await worker.call("echo", {}, 20) == {}


async def test_child_that_cannot_start_is_explained(make_worker: Make) -> None:
    with pytest.raises(WorkerFailed, match="ended with exit code 1; its last words: there is no model here"):
        await make_worker("--fail").start()
    with pytest.raises(WorkerFailed, match=r"was not ready within 0.5 s and was killed"):
        await make_worker("--never-ready", start_timeout_s=0.5).start()


async def test_backoff_grows_and_ends_with_success(make_worker: Make) -> None:
    waits: list[float] = []

    class Watch:
        """Counts waits; time itself stands still, so that each wait is the whole back-off."""

        def now(self) -> None:
            raise AssertionError

        def monotonic(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None:
            waits.append(seconds)

    worker = make_worker(clock=Watch())
    for method in ("die", "die", "die"):
        with pytest.raises(WorkerFailed):
            await worker.call(method, {}, 20)
    await worker.call("echo", {}, 20)
    with pytest.raises(WorkerFailed):
        await worker.call("die", {}, 20)
    await worker.call("echo", {}, 20)
    assert waits == [0.0, 0.01, 0.02, 0.04, 0.01]


async def test_children_get_allowed_variables_only(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "GITHUB_TOKEN",
        "WALLET_PASSWORD",
        "HF_TOKEN",
        "QUASAR_JOURNAL_KEY",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = await make_worker("--flag").call("environment", {}, 20)
    env = seen["env"]
    assert "hunter2" not in str(env)
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert seen["argv"] == ["--flag"]
    assert seen["sid"] == seen["pid"]


def test_environment_keeps_an_explicit_memory_setting() -> None:
    assert worker_environment(base={"PYTORCH_CUDA_ALLOC_CONF": "x:1"})["PYTORCH_CUDA_ALLOC_CONF"] == "x:1"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in worker_environment(base={"PYTORCH_ALLOC_CONF": "x:1"})
    assert worker_environment({"A": "b"}, base={"LC_ALL": "C", "B": "c"}).items() >= {
        ("A", "b"),
        ("LC_ALL", "C"),
    }


async def test_idle_child_leaves_when_its_stdin_ends(make_worker: Make) -> None:
    worker = make_worker()
    await worker.start()
    pid = worker.pid
    await worker.close(patience_s=20)
    assert worker.pid is None
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()


PARENT = textwrap.dedent(
    """
    import asyncio, sys
    from node.workers import WorkerProcess

    async def main():
        worker = WorkerProcess("worker_child", env={"PYTHONPATH": sys.argv[1]})
        await worker.start()
        print(worker.pid, flush=True)
        await worker.call("sleep", {}, 300)

    asyncio.run(main())
    """
)


async def test_busy_child_dies_with_a_killed_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, f"{ROOT}:{ROOT / 'tests' / 'node'}"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert await gone(pid)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


ENV = worker_environment({"PYTHONPATH": str(ROOT)})


async def test_one_shot_process_reads_answers_and_logs() -> None:
    lines: list[str] = []
    code = """
        import sys
        document = sys.stdin.read()
        print("progress 1\\n\\nprogress 2", file=sys.stderr)
        sys.stdout.write(document[::-1])
    """
    document = "ü" + "abc" * 1_000_000
    answer = await run_json_process(
        python(code), document, timeout_s=60, env=ENV, on_stderr_line=lines.append
    )
    assert answer == document[::-1]
    assert lines == ["progress 1", "progress 2"]


async def test_one_shot_process_need_not_read_its_document() -> None:
    answer = await run_json_process(
        python("print('{}')"), "x" * 5_000_000, timeout_s=20, env=ENV, on_stderr_line=print
    )
    assert answer == "{}\n"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import sys; sys.exit('no GPU')", "ended with exit code 1; its last words: no GPU"),
        ("import os; os.abort()", "was killed by signal 6"),
        ("import sys; sys.stdout.buffer.write(bytes([255]))", "not UTF-8"),
        ("print('x' * 3000)", "answered more than 2000 bytes"),
    ],
)
async def test_one_shot_failures_are_explained(code: str, sentence: str) -> None:
    with pytest.raises(WorkerFailed, match=sentence):
        await run_json_process(
            python(code), "", timeout_s=20, env=ENV, on_stderr_line=lambda _: None, max_answer_bytes=2000
        )


async def test_one_shot_command_that_does_not_exist() -> None:
    with pytest.raises(WorkerFailed, match="process /absent cannot be started: No such file"):
        await run_json_process(["/absent"], "", timeout_s=20, env=ENV, on_stderr_line=print)


HANGS = """
    import subprocess, sys, time
    child = subprocess.Popen(["sleep", "300"])
    print(child.pid, file=sys.stderr, flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_one_shot_hang_leaves_nothing_behind(way: str) -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_json_process(
            python(HANGS),
            "",
            timeout_s=10 if way == "timeout" else 60,
            env=ENV,
            on_stderr_line=lambda line: started.set_result(int(line)),
        )
    )
    pid = await asyncio.wait_for(started, 20)
    if way == "cancel":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(WorkerFailed, match="did not finish within 10 s and was killed"):
            await task
    assert await gone(pid)


async def test_one_shot_leader_that_leaves_a_child_behind() -> None:
    """The group is killed although its leader ended well."""
    pids: list[int] = []
    code = """
        import subprocess, sys
        child = subprocess.Popen(["sleep", "300"], stdin=-3, stdout=-3, stderr=-3)
        print(child.pid, file=sys.stderr)
    """
    await run_json_process(
        python(code), "", timeout_s=20, env=ENV, on_stderr_line=lambda line: pids.append(int(line))
    )
    assert await gone(pids[0])


async def test_one_shot_grandchild_that_holds_stderr_open_does_not_delay_the_answer() -> None:
    pids: list[int] = []
    code = """
        import subprocess, sys
        child = subprocess.Popen(["sleep", "300"], stdin=-3, stdout=-3, start_new_session=True)
        print(child.pid, file=sys.stderr)
        print("{}")
    """
    answer = await run_json_process(
        python(code), "", timeout_s=60, env=ENV, on_stderr_line=lambda line: pids.append(int(line))
    )
    os.kill(pids[0], signal.SIGKILL)
    assert answer == "{}\n"


def test_orphan_ends_itself() -> None:
    code = "from node.worker_main import die_with_parent; die_with_parent(); print('alive')"
    env = {**ENV, "QUASAR_PARENT_PID": str(os.getpid())}
    alive = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=20)
    assert alive.stdout == "alive\n"
    orphan = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"QUASAR_PARENT_PID": "1"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (orphan.returncode, orphan.stdout) == (75, "")
