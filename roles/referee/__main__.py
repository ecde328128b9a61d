"""`python -m roles.referee`: one EvaluationJob on standard input, one EvaluationReport on standard output.

With `--compare` it takes a ComparisonJob and gives a ComparisonReport. With `--check DEVICE` it computes
something there, and answers only when it was right.
"""

import os
import sys
from pathlib import Path

from pydantic import ValidationError

from node.worker_main import die_with_parent, take_stdout
from protocol.messages import ComparisonJob, EvaluationJob


def main() -> int:
    """Evaluate the job; 2 when it is not one."""
    die_with_parent()
    answers = take_stdout()
    if sys.argv[1:2] == ["--check"]:
        from roles.referee.check import check_device

        check_device(sys.argv[2])
        os.write(answers, b"{}")
        return 0
    document = sys.stdin.buffer.read()
    try:
        if sys.argv[1:2] == ["--compare"]:
            answer = _compare(ComparisonJob.model_validate_json(document))
        else:
            answer = _evaluate(EvaluationJob.model_validate_json(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "job"
        print(f"{where} = {first.get('input')!r:.200}: {first['msg']}", file=sys.stderr)
        return 2
    with os.fdopen(answers, "w") as stream:
        stream.write(answer)
    return 0


# Imported after the job is known to be sound: torch takes seconds.


def _evaluate(job: EvaluationJob) -> str:
    _make_work_dir(job)
    from roles.referee.evaluation import evaluate

    return evaluate(job, _announce).model_dump_json()


def _compare(job: ComparisonJob) -> str:
    _make_work_dir(job.earlier)
    from roles.referee.comparison import compare

    return compare(job, _announce).model_dump_json()


def _make_work_dir(job: EvaluationJob) -> None:
    # Here, where it is: the node may be on another host.
    Path(job.work_dir).mkdir(mode=0o700, parents=True, exist_ok=True)


def _announce(stage: str) -> None:
    print(f"stage: {stage}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
