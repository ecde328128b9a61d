"""Submissions in the sandbox without namespaces, which serves `verify` where there is no bubblewrap."""

import site
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.export import export_files
from node.landlock import MIN_ABI, landlock_abi
from node.sandbox_spec import SandboxTier
from protocol.messages import EvaluationJob, EvaluationReport
from protocol.verdicts import Fault, Isolation, Status
from tests.adversarial.conftest import Judge, laid_out
from tests.adversarial.test_attacks import wrapped
from tests.adversarial.test_escapes import FUTILE, assert_left_behind_is_ended, attempt
from tests.ordinary_user import as_ordinary_user
from tests.requirements import missing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def judge_in_place(tmp_path: Path) -> Judge:
    """Return a function that has the referee judge a submission as a user without bubblewrap would."""
    if landlock_abi() < MIN_ABI:
        missing(f"this kernel's Landlock has version {landlock_abi()}, and {MIN_ABI} is needed")

    def judge(suffix: str = "", **fields: object) -> EvaluationReport:
        job = EvaluationJob(
            source=laid_out(tmp_path, export_files("chunk"), suffix),
            target_sequence_length=100_000,
            sequence_length=128,
            profile="cpu",
            device="cpu",
            trials_min=3,
            trials_max=3,
            deadline_s=90.0,
            work_dir=str(tmp_path / "work"),
            **{"isolation": Isolation.ANY} | fields,
        )
        done = subprocess.run(
            as_ordinary_user([sys.executable, "-m", "roles.referee"]),
            input=job.model_dump_json(),
            env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return EvaluationReport.model_validate_json(done.stdout)

    return judge


def test_an_honest_submission_passes(judge_in_place: Judge) -> None:
    report = judge_in_place()
    assert report.figures.status is Status.PASSED, report.figures.evidence
    assert report.sandbox_tier == SandboxTier.LANDLOCK


def test_a_verdict_that_scores_needs_more(judge_in_place: Judge) -> None:
    figures = judge_in_place(isolation=Isolation.TO_SCORE).figures
    assert figures.status is Status.INFRASTRUCTURE
    assert "apt-get install bubblewrap" in figures.evidence["reason"]


def test_what_cannot_be_reached(judge_in_place: Judge) -> None:
    """The same as with bubblewrap, and the operator's files and processes, which have the same user."""
    [fla] = [path for path in map(Path, site.getsitepackages()) if (path / "fla").is_dir()]
    forbidden = fla / "fla" / "ops" / "gla" / "chunk.py"
    assert forbidden.is_file()
    actions = [
        *FUTILE.values(),
        "os.kill(os.getppid(), 9)",
        "os.chmod(__file__, 0o777)",
        "os.listdir(os.path.expanduser('~/..'))",
        f"open({str(ROOT / 'kernels' / 'chunk.py')!r})",
        f"open({str(forbidden)!r})",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
    ]
    figures = judge_in_place("\n".join(attempt(action) for action in actions)).figures
    assert figures.status is Status.PASSED, figures.evidence
    tail = figures.evidence["log_tail"]
    assert "ATTEMPT WORKED" not in tail
    assert tail.count("ATTEMPT FAILED") == len(actions), tail


def test_a_process_left_behind_is_ended(judge_in_place: Judge) -> None:
    assert_left_behind_is_ended(judge_in_place)


def test_killing_everything_and_dying_is_a_crash(judge_in_place: Judge) -> None:
    code = "import contextlib, os, signal\n" + wrapped(
        "with contextlib.suppress(PermissionError):", "    os.kill(-1, signal.SIGKILL)", "os.abort()"
    )
    figures = judge_in_place(code).figures
    assert (figures.status, figures.fault) == (Status.CRASHED, Fault.MINER), figures.evidence


def test_a_wrong_result_is_found(judge_in_place: Judge) -> None:
    assert judge_in_place(wrapped("o = o * 1.2")).figures.status is Status.WRONG_OUTPUT
