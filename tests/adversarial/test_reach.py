"""What a submission may reach from inside, and what its words may do to the referee."""

import pytest

from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge


def test_words_that_no_encoder_takes_are_a_crash_of_the_miner(judge_submission: Judge) -> None:
    """A lone surrogate, a terminal's escape and markup in an exception: the report must still be written."""
    report = judge_submission("raise ValueError('\\ud800 \\x1b[2J [/bold] \\u202e')")
    assert report.figures.status is Status.BUILD_FAILED
    assert report.figures.fault is Fault.MINER
    assert "ValueError" in report.figures.evidence["reason"]
    assert report.figures.evidence["reason"].isprintable()
    report.model_dump_json().encode()


def test_our_own_kernels_cannot_be_called_instead(judge_submission: Judge) -> None:
    """Wrapping the validator's kernel would be a copy whose fingerprint is new."""
    figures = judge_submission("from kernels.chunk import chunk_quasar").figures
    assert figures.status is Status.BUILD_FAILED, figures.evidence
    assert "kernels.chunk" in figures.evidence["reason"]


def test_the_reference_is_somewhere_else(judge_submission: Judge) -> None:
    """Neither what judges nor what it judges by is in the candidate's process."""
    modules = (
        *("kernels.reference", "kernels.layer", "kernels.harness.accuracy", "kernels.harness.session"),
        *("kernels.harness.trusted_layer", "roles.referee", "protocol.judging", "node.sandbox"),
    )
    search = [
        f"try:\n    import {name}\nexcept ModuleNotFoundError:\n    print('ABSENT')" for name in modules
    ]
    figures = judge_submission("\n".join(search)).figures
    assert figures.status is Status.PASSED, figures.evidence
    assert figures.evidence["log_tail"].count("ABSENT") == len(modules)


def test_the_forbidden_operators_are_not_in_the_sandbox(judge_submission: Judge) -> None:
    """Static rules can be talked round; there must be nothing to find behind the stubs."""
    figures = judge_submission(
        "import os\n"
        "for _folder, _, _files in os.walk('/', onerror=None):\n"
        "    if _folder.endswith(('/gla', '/kda', '/delta_rule')) and '/proc/' not in _folder:\n"
        "        print('FOUND', _folder, sorted(_files))\n",
        deadline_s=120.0,
    ).figures
    assert figures.status is Status.PASSED, figures.evidence
    found = [line for line in figures.evidence["log_tail"].splitlines() if line.startswith("FOUND")]
    assert len(found) == 2, found
    assert all("/quasar/tree/" in line and line.endswith("['__init__.py']") for line in found)


@pytest.mark.parametrize("text", ["", "x = 1\n"])
def test_a_submission_without_operators(text: str, judge_submission: Judge) -> None:
    figures = judge_submission(replace={"chunk.py": text}).figures
    assert figures.status is Status.IMPORTS_MISSING
    assert figures.fault is Fault.MINER
