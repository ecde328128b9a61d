"""`python -m roles.referee`: one EvaluationJob on standard input, one EvaluationReport on standard output.

With `--check DEVICE` it computes something there, and answers only when it was right.
"""

import os
import sys

from pydantic import ValidationError

from node.worker_main import die_with_parent, take_stdout
from protocol.messages import EvaluationJob


def main() -> int:
    """Evaluate the job; 2 when it is not one."""
    die_with_parent()
    answers = take_stdout()
    if sys.argv[1:2] == ["--check"]:
        from roles.referee.check import check_device

        check_device(sys.argv[2])
        os.write(answers, b"{}")
        return 0
    try:
        job = EvaluationJob.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "job"
        print(f"{where} = {first.get('input')!r:.200}: {first['msg']}", file=sys.stderr)
        return 2
    # After the job is known to be sound: torch takes seconds to import.
    from roles.referee.evaluation import evaluate

    report = evaluate(job, lambda stage: print(f"stage: {stage}", file=sys.stderr, flush=True))
    with os.fdopen(answers, "w") as stream:
        stream.write(report.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
