"""The loop with each proposer and the real referee: import rules, sandbox, correctness, time."""

from pathlib import Path

import pytest

from kernels.export import export_files
from node.settings_model import AgentSection, EvaluationSection, Settings, ValidatorSection
from protocol.errors import ConfigError
from protocol.verdicts import Status
from roles.evaluation import Referee
from roles.miner.candidate import Candidate
from roles.miner.history import Entry, Phase
from roles.miner.measuring import ATTEMPTS, Measuring
from roles.miner.optimiser import Optimiser
from roles.miner.proposers import open_proposer
from roles.miner.target import FACT, LENGTHS, Target, TargetChooser
from tests.fakes.language_model import ScriptedModel, answer_with
from tests.roles.miner.harness import TARGET, Miner, ScriptedReferee, files, report

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("sandbox")]

GOOD = export_files("chunk64")["chunk.py"]
WRONG = (
    GOOD
    + "\n\n_right = chunk_quasar\n\n\ndef chunk_quasar(*args, **kwargs):\n"
    + ("    o, state = _right(*args, **kwargs)\n    return 1.5 * o, state\n")
)


@pytest.fixture
def real(miner: Miner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miner:
    """The miner with the real referee, on sequences that take a moment."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    evaluation = EvaluationSection(trials_min=1, trials_max=1, max_sequence_length=64)
    miner.settings = miner.settings.model_copy(update={"evaluation": evaluation})
    return miner


async def loop(miner: Miner, settings: Settings, count: int) -> list[Entry]:
    """Run the optimiser until so many candidates came to an end."""
    await miner.open()
    referee, target = Referee(settings, settings.node.data_dir), Target(TARGET)
    miner.optimiser = Optimiser(
        settings=settings.miner,
        proposer=open_proposer(
            settings, "cpu", referee=referee, history=miner.history, target=target, clock=miner.clock
        ),
        measuring=Measuring(referee, settings.node.data_dir / "work"),
        history=miner.history,
        target=target,
        chooser=None,
        clock=miner.clock,
    )
    miner.run("optimiser")

    async def ended() -> list[Entry] | None:
        entries = await miner.history.entries(Phase.FAILED, Phase.READY, Phase.REFUSED)
        return entries if len(entries) >= count else None

    return list(await miner.until(ended, timeout_s=500.0))


async def test_agent_that_writes_good_wrong_hostile_and_malformed_code(real: Miner, tmp_path: Path) -> None:
    marker = tmp_path / "escaped"
    hostile = f"import pathlib\npathlib.Path({str(marker)!r}).write_text('x')\n" + GOOD
    answers = [
        answer_with({"chunk.py": GOOD}, "longer chunks"),
        answer_with({"chunk.py": WRONG}, "half as exact"),
        answer_with({"chunk.py": hostile}, "a file of my own"),
        answer_with({"chunk.py": "from fla.ops.gla import chunk_gla\n" + GOOD}, "borrowed"),
        "SUMMARY: look\nFILE: ../../../etc/passwd\n```python\nx = 1\n```",
        "As a language model I would rather not.",
    ]
    real.change(agent_iterations=7)
    model = ScriptedModel(answers)
    async with model.serve() as base_url:
        settings = real.settings.model_copy(
            update={
                "agent": AgentSection(base_url=base_url, model="m", timeout_s=20.0),
                "miner": real.settings.miner.model_copy(update={"proposer": "agent"}),
            }
        )
        entries = await loop(real, settings, 7)
    found = {entry.note: (entry.phase, entry.status) for entry in entries}
    assert found["the shipped kernel"] == (Phase.READY, "passed")
    assert found["longer chunks"] == (Phase.READY, "passed")
    assert found["half as exact"] == (Phase.FAILED, "wrong_output")
    assert found["a file of my own"][0] is Phase.FAILED
    assert found["borrowed"] == (Phase.FAILED, "imports_forbidden")
    assert [entry.reason.split(":")[0] for entry in entries if entry.phase is Phase.REFUSED] == [
        "file name '../../../etc/passwd' is not allowed",
        "a line that begins with SUMMARY",
    ]
    assert not marker.exists()
    assert len(model.asked) == 6
    assert "fla.ops.gla" in model.asked[4]["messages"][1]["content"]


async def test_tuner_and_files_go_the_same_way(real: Miner, tmp_path: Path) -> None:
    real.change(agent_iterations=1, proposer="tuner", tuner_budget_s=2.0)
    (tuned,) = await loop(real, real.settings, 1)
    assert (tuned.proposer, tuned.status) == ("tuner", "passed")
    assert tuned.figures is not None
    assert tuned.figures["evidence"]["trial_s"]
    await real.kill()

    folder = tmp_path / "kernels"
    folder.mkdir()
    for name, text in (export_files("chunk") | {"chunk.py": WRONG}).items():
        (folder / name).write_text(text)
    real.change(proposer="files", kernel_dir=folder)
    _, own = await loop(real, real.settings, 2)
    assert (own.proposer, own.status) == ("files", "wrong_output")


async def test_what_a_model_writes_is_not_run_without_a_sandbox(miner: Miner) -> None:
    await miner.open()
    settings = miner.settings.model_copy(
        update={
            "agent": AgentSection(base_url="http://127.0.0.1:1/v1", model="m"),
            "miner": miner.settings.miner.model_copy(update={"proposer": "agent"}),
            "validator": ValidatorSection(unsafe_no_sandbox=True),
        }
    )
    with pytest.raises(ConfigError, match="runs in a sandbox only"):
        open_proposer(
            settings,
            "cpu",
            referee=Referee(settings, settings.node.data_dir),
            history=miner.history,
            target=Target(TARGET),
            clock=miner.clock,
        )


@pytest.mark.parametrize(("proposer", "words"), [("agent", "agent.model"), ("files", "kernel_dir")])
async def test_proposer_that_lacks_a_setting_names_it(miner: Miner, proposer: str, words: str) -> None:
    await miner.open()
    miner.change(proposer=proposer)
    with pytest.raises(ConfigError, match=words):
        open_proposer(
            miner.settings,
            "cpu",
            referee=Referee(miner.settings, miner.settings.node.data_dir),
            history=miner.history,
            target=Target(TARGET),
            clock=miner.clock,
        )


async def test_league_is_measured_once_and_where_the_score_is_highest(miner: Miner) -> None:
    await miner.open()
    # Memory ends at 500k; until then longer is better.
    reports = [report(tokens_per_sec=1000.0 - index) for index in range(5)]
    miner.referee = ScriptedReferee([*reports, report(Status.OUT_OF_MEMORY, None)])

    def chooser(machine: str = "H200") -> TargetChooser:
        measuring = Measuring(miner.referee, miner.settings.node.data_dir / "work")
        return TargetChooser(
            measuring, miner.history, miner.clock, files=files(), machine=machine, default=TARGET
        )

    assert await chooser().choose() == 500_000
    assert [asked["target"] for asked in miner.referee.asked] == list(LENGTHS[:6])
    assert await chooser().choose() == 500_000
    assert len(miner.referee.asked) == 6
    known = await miner.history.fact(FACT)
    assert known["leagues"]["500000"]["score"] == pytest.approx(996.0 * 1.5)
    assert known["leagues"]["600000"]["status"] == "out_of_memory"

    miner.referee = ScriptedReferee([report(Status.WRONG_OUTPUT, None)])
    assert await chooser("H100").choose() == TARGET
    assert len(miner.referee.asked) == len(LENGTHS)


async def test_leagues_end_where_the_referee_has_no_memory_left_and_begin_there_another_time(
    miner: Miner,
) -> None:
    await miner.open()
    too_small = report(Status.INFRASTRUCTURE, None, short_of_memory=True)

    def chooser() -> TargetChooser:
        measuring = Measuring(miner.referee, miner.settings.node.data_dir / "work")
        return TargetChooser(
            measuring, miner.history, miner.clock, files=files(), machine="RTX 4090", default=TARGET
        )

    miner.referee = ScriptedReferee([report(tokens_per_sec=1000.0), *[too_small] * ATTEMPTS])
    assert await chooser().choose() == LENGTHS[0]
    assert [asked["target"] for asked in miner.referee.asked] == [LENGTHS[0], *[LENGTHS[1]] * ATTEMPTS]
    miner.referee = ScriptedReferee([report(tokens_per_sec=1000.0), *[too_small] * ATTEMPTS])
    assert await chooser().choose() == LENGTHS[1]
    assert miner.referee.asked[0]["target"] == LENGTHS[1]


async def test_league_that_a_kill_cut_off_is_the_only_one_measured_again(miner: Miner) -> None:
    await miner.open()
    measured = {"status": "passed", "score": 1.0, "tokens_per_sec": 1.0}
    known = {
        "machine": "cpu",
        "digest": Candidate("", files()).digest,
        "leagues": {str(length): measured for length in LENGTHS[:-1]},
    }
    miner.referee = ScriptedReferee([report(tokens_per_sec=5.0)])
    chooser = TargetChooser(
        Measuring(miner.referee, miner.settings.node.data_dir / "work"),
        miner.history,
        miner.clock,
        files=files(),
        machine="cpu",
        default=TARGET,
    )
    await miner.history.remember(FACT, known)
    assert await chooser.choose() == 1_000_000
    assert [asked["target"] for asked in miner.referee.asked] == [1_000_000]
