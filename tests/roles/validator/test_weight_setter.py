"""Weights on a real local chain: shares, rate limit, read-back, restarts, and who gets what nobody earned."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from node.chain import LocalChain
from protocol.errors import ChainRejected, ChainUnavailable
from protocol.events import WeightsSet
from protocol.types import Hotkey
from protocol.verdicts import LogitOutcome, Status
from roles.validator import weight_setter
from tests.node.chain.fronts import FRONTS
from tests.roles.api.harness import Subnet, key, registration
from tests.roles.miner.harness import report
from tests.roles.validator.harness import Validator

OWNER = "owner"


@pytest.fixture(params=FRONTS)
def front_kind(request: pytest.FixtureRequest) -> str:
    """Everything here runs over both fronts."""
    return str(request.param)


@pytest.fixture
def subnet(tmp_path: Path) -> Subnet:
    """A validator, six miners and the subnet's owner; weights at most every ten blocks."""
    path = tmp_path / "chain.sqlite"
    chain = LocalChain.create(
        path,
        block_time_s=3600.0,
        netuid=24,
        owner_hotkey=key(OWNER).ss58_address,
        neurons=[
            registration("validator", "cold-v", 5000.0, permit=True),
            *(registration(name, f"cold-{name}") for name in ("miner", "rival", "m3", "m4", "m5")),
            registration(OWNER, "cold-o"),
        ],
        weights_rate_limit=10,
    )
    return Subnet(path, chain)


def by_name(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights by the names of the keys, rounded as the chain rounds."""
    names = {key(name).ss58_address: name for name in ("miner", "rival", "m3", "m4", "m5", OWNER)}
    return {names[hotkey]: round(weight, 4) for hotkey, weight in weights.items()}


async def on_chain(validator: Validator) -> dict[str, float]:
    """What the chain shows of the validator's weights."""
    return by_name(await validator.chain.weights_of(validator.api.hotkey))


async def enter(validator: Validator, number: int, name: str, speed: float, **options: Any) -> None:
    """Have a miner pass kernel and logits, and its lead confirmed."""
    await validator.judge(number, key(name), report(tokens_per_sec=speed), minutes=number, **options)
    await validator.check(key(name))
    await validator.settle_leads()


async def until_set(validator: Validator, times: int) -> Any:
    """Wait until weights were set that often; returns the last event."""

    async def condition() -> Any:
        events = validator.recorder.of(WeightsSet)
        return events[-1] if len(events) >= times else None

    return await validator.until(condition)


async def quiet(validator: Validator) -> None:
    """Let the setter work off the last block."""

    async def worked_off() -> bool:
        return len(validator.setter._blocks) == 0

    await validator.until(worked_off)
    await validator.chain.metagraph()
    await validator.chain.metagraph()


async def test_two_miners_are_paid_60_to_25_and_a_failed_one_nothing(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await enter(validator, 2, "rival", 2000.0)
    await validator.judge(3, key("m3"), report(Status.WRONG_OUTPUT, None))
    await validator.check(key("m3"))
    height = await validator.tick(1)
    event = await until_set(validator, 1)
    weights = await on_chain(validator)
    assert set(weights) == {"rival", "miner"}
    assert weights["rival"] / weights["miner"] == pytest.approx(60 / 25, abs=0.01)
    assert event.height >= height
    assert by_name(dict(event.weights)) == weights
    assert validator.metrics.set_weights.labels("success")._value.get() == 1


async def test_first_four_earn_all(validator: Validator) -> None:
    await validator.start("setter")
    for number, name in enumerate(("miner", "rival", "m3", "m4", "m5"), start=1):
        await enter(validator, number, name, 6000.0 - 1000.0 * number)
    await validator.tick(1)
    await until_set(validator, 1)
    weights = await on_chain(validator)
    assert weights == pytest.approx({"miner": 0.6, "rival": 0.25, "m3": 0.1, "m4": 0.05}, abs=1e-3)


async def test_miner_without_logits_waits(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.judge(2, key("rival"), report(tokens_per_sec=9000.0))
    await validator.check(key("rival"), LogitOutcome.PENDING)
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == {"miner": 1.0}


async def test_new_ranking_is_set_as_soon_as_the_rate_limit_allows(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    start = await validator.tick(1)
    await until_set(validator, 1)
    await enter(validator, 2, "rival", 2000.0)
    await validator.tick(5)
    await quiet(validator)
    assert await on_chain(validator) == {"miner": 1.0}
    assert validator.metrics.set_weights.labels("rejected")._value.get() == 0
    # The head jumps over the due block.
    height = await validator.tick(8)
    event = await until_set(validator, 2)
    assert event.height == height == start + 13
    assert set(await on_chain(validator)) == {"miner", "rival"}


async def test_unchanged_ranking_is_set_again_only_when_due(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    for passed in (30, 60, 90):
        await validator.tick(30)
        await quiet(validator)
        assert validator.metrics.values()["quasar_blocks_since_weights"] == passed
    assert len(validator.recorder.of(WeightsSet)) == 1
    await validator.tick(30)
    await until_set(validator, 2)


async def test_restart_does_not_set_what_the_chain_shows_already(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    await validator.kill()
    await validator.start("setter")
    await validator.tick(20)
    await quiet(validator)
    assert validator.recorder.of(WeightsSet) == []
    await enter(validator, 2, "rival", 2000.0)
    await validator.tick(1)
    await until_set(validator, 1)


async def test_nobody_qualified_sets_nothing_on_the_local_chain(validator: Validator) -> None:
    await validator.start("setter")
    await validator.tick(1)
    await validator.tick(200)
    await quiet(validator)
    assert await on_chain(validator) == {}


async def test_elsewhere_what_nobody_earned_goes_to_the_owner(validator: Validator) -> None:
    validator.is_local_chain = False
    await validator.start("setter")
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == {OWNER: 1.0}
    await enter(validator, 1, "miner", 1000.0)
    await enter(validator, 2, "rival", 2000.0)
    await validator.tick(20)
    await until_set(validator, 2)
    weights = await on_chain(validator)
    assert weights == pytest.approx({"rival": 0.6, "miner": 0.25, OWNER: 0.15}, abs=1e-3)


async def test_owner_who_also_mines_keeps_both(validator: Validator) -> None:
    validator.is_local_chain = False
    await validator.start("setter")
    await enter(validator, 1, OWNER, 1000.0)
    await enter(validator, 2, "rival", 2000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == pytest.approx({"rival": 0.6, OWNER: 0.4}, abs=1e-3)


async def test_hotkey_that_left_the_subnet_is_passed_over(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "stranger", 9000.0)
    await enter(validator, 2, "miner", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == {"miner": 1.0}


@pytest.mark.parametrize("error", [ChainRejected("custom error 13"), ChainUnavailable("no answer")])
async def test_refusal_is_tried_again_some_blocks_later(
    validator: Validator, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    set_weights = validator.chain.set_weights
    failures = [error]

    async def refuse_once(wallet: Any, weights: Mapping[Any, float]) -> None:
        if failures:
            raise failures.pop()
        await set_weights(wallet, weights)

    monkeypatch.setattr(validator.chain, "set_weights", refuse_once)
    await validator.tick(1)

    async def failed() -> bool:
        return not failures

    await validator.until(failed)
    await quiet(validator)
    assert await on_chain(validator) == {}
    await validator.tick(2)
    await until_set(validator, 1)
    assert await on_chain(validator) == {"miner": 1.0}


async def test_success_that_the_chain_does_not_show_is_no_success(
    validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)

    async def pretend(wallet: Any, weights: Mapping[Any, float]) -> None:
        pass

    monkeypatch.setattr(validator.chain, "set_weights", pretend)
    await validator.tick(1)

    async def rejected() -> bool:
        return bool(validator.metrics.set_weights.labels("rejected")._value.get() == 1)

    await validator.until(rejected)
    assert validator.recorder.of(WeightsSet) == []


async def test_lost_permit_is_reported_and_does_not_end_the_validator(
    validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await validator.start("setter")
    monkeypatch.setattr(validator.setter, "_hotkey", key("stranger").ss58_address)
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)

    async def noted() -> bool:
        return bool(validator.metrics.set_weights.labels("not_permitted")._value.get() == 1)

    await validator.until(noted)
    validator.ensure_running()


async def test_status_tells_ranking_and_weights(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    height = await validator.tick(1)
    await until_set(validator, 1)
    await quiet(validator)
    told = await validator.setter.describe()
    assert [(row["place"], row["submission_id"], row["share"]) for row in told["ranking"]] == [(1, 1, 0.6)]
    assert by_name(told["weights"]) == {"miner": 1.0}
    assert told["refresh_at"] == height + 100


def change(validator: Validator, column: str, value: int) -> None:
    """Change a rule of the subnet, as its owner may at any time."""
    with validator.subnet.chain._store.writing() as connection:
        connection.execute(f"UPDATE parameters SET {column} = ?", (value,))


async def test_commit_reveal_weights_are_set_once_and_refreshed(validator: Validator) -> None:
    change(validator, "commit_reveal", 1)
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)
    event = await until_set(validator, 1)
    assert by_name(dict(event.weights)) == {"miner": 1.0}
    assert await on_chain(validator) == {}, "what is committed is not shown yet"
    await validator.tick(50)
    await quiet(validator)
    assert len(validator.subnet.chain.state().weight_commits[0]) == 1
    await validator.tick(60)
    await until_set(validator, 2)


async def test_commit_reveal_weights_that_the_chain_shows_survive_a_restart(validator: Validator) -> None:
    change(validator, "commit_reveal", 1)
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    await validator.kill()
    validator.subnet.chain.open_commit(key("validator").ss58_address, [1], [65_535])
    await validator.start("setter")
    await validator.tick(20)
    await quiet(validator)
    assert validator.recorder.of(WeightsSet) == []


async def test_a_minimum_of_weights_does_not_keep_the_winner_from_being_paid(validator: Validator) -> None:
    change(validator, "min_allowed_weights", 4)
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    weights = await validator.chain.weights_of(validator.api.hotkey)
    assert len(weights) == 4
    assert weights[Hotkey(key("miner").ss58_address)] > 0.999
    await validator.kill()
    await validator.start("setter")
    await validator.tick(20)
    await quiet(validator)
    assert validator.recorder.of(WeightsSet) == [], "what was filled up is no other ranking"


async def test_a_recycled_uid_is_not_paid(validator: Validator) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 2000.0)
    await enter(validator, 2, "rival", 1000.0)
    newcomer = registration("newcomer", "cold-n")
    validator.subnet.chain.register(newcomer, replace_uid=1)
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == {"rival": 1.0}


async def test_those_who_will_be_paid_are_challenged_first(validator: Validator) -> None:
    await validator.start("setter")
    for number, name in enumerate(("miner", "rival", "m3", "m4", "m5"), start=1):
        await enter(validator, number, name, 6000.0 - 1000.0 * number)
    await validator.tick(1)
    await until_set(validator, 1)
    paid = {key(name).ss58_address for name in ("miner", "rival", "m3", "m4")}
    assert validator.confirmed == [paid]


async def test_miner_that_is_silent_before_weights_is_not_paid_until_it_passes_again(
    validator: Validator,
) -> None:
    await validator.start("setter")
    for number, name in enumerate(("miner", "rival", "m3", "m4", "m5"), start=1):
        await enter(validator, number, name, 6000.0 - 1000.0 * number)
    await validator.check(key("miner"), LogitOutcome.PENDING)
    validator.silent = {key("miner").ss58_address}
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == pytest.approx(
        {"rival": 0.6, "m3": 0.25, "m4": 0.1, "m5": 0.05}, abs=1e-3
    )
    assert validator.confirmed[1] == {key("m5").ss58_address}, "it moved up, so it was challenged too"

    validator.silent = set()
    await validator.tick(20)
    await quiet(validator)
    assert len(validator.recorder.of(WeightsSet)) == 1
    await validator.check(key("miner"))
    await validator.tick(1)
    await until_set(validator, 2)
    assert (await on_chain(validator))["miner"] == pytest.approx(0.6, abs=1e-3)


async def test_miner_whose_challenge_fails_before_weights_is_not_paid(
    validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await validator.open()

    async def fail_the_miner(hotkeys: Any) -> set[Any]:
        if key("miner").ss58_address in hotkeys:
            await validator.check(key("miner"), LogitOutcome.FAILED)
        return set()

    monkeypatch.setattr(validator.setter, "_confirm", fail_the_miner)
    validator.run("setter")
    await enter(validator, 1, "miner", 2000.0)
    await enter(validator, 2, "rival", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == {"rival": 1.0}


async def test_stale_weights_are_an_error_in_the_log(
    validator: Validator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await validator.start("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)

    async def refuse(wallet: Any, weights: Mapping[Any, float]) -> None:
        raise ChainRejected("custom error 13")

    monkeypatch.setattr(validator.chain, "set_weights", refuse)
    await validator.tick(301)
    await quiet(validator)
    assert "weights on chain are stale" in caplog.text
    assert validator.metrics.values()["quasar_blocks_since_weights"] == 301


async def test_challenges_that_take_for_ever_do_not_hold_up_the_weights(
    validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await validator.open()

    async def hang(hotkeys: Any) -> set[Any]:
        await asyncio.sleep(3600.0)
        return set(hotkeys)

    monkeypatch.setattr(validator.setter, "_confirm", hang)
    monkeypatch.setattr(weight_setter, "CONFIRM_PATIENCE_S", 0.2)
    validator.run("setter")
    await enter(validator, 1, "miner", 1000.0)
    await validator.tick(1)
    await until_set(validator, 1)
    assert await on_chain(validator) == {"miner": 1.0}
