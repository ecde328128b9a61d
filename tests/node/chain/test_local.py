"""The embedded chain's state machine, alone and shared by processes."""

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.chain import LocalChain, Registration
from node.chain.local import ExtrinsicRefused
from protocol.errors import ChainUnavailable, ConfigError
from protocol.types import Coldkey, Hotkey

VALIDATOR = Registration(Hotkey("validator"), Coldkey("c0"), 2000.0, True)
MINERS = [Registration(Hotkey(f"miner{index}"), Coldkey("c1")) for index in range(3)]


def make(path: Path, **options: Any) -> LocalChain:
    defaults: dict[str, Any] = {
        "block_time_s": 3600.0,
        "netuid": 24,
        "owner_hotkey": None,
        "neurons": [VALIDATOR, *MINERS],
        "weights_rate_limit": 10,
    }
    return LocalChain.create(path, **(defaults | options))


@pytest.fixture
def chain(tmp_path: Path) -> LocalChain:
    return make(tmp_path / "chain.sqlite")


def refused(name: str) -> Any:
    return pytest.raises(ExtrinsicRefused, check=lambda error: error.name == name)


def test_height_follows_the_clock_and_advance(tmp_path: Path) -> None:
    now = 1000.0
    chain = make(tmp_path / "chain.sqlite", block_time_s=0.25, now=lambda: now)
    assert chain.height() == 1
    now = 1000.24
    assert chain.height() == 1
    now = 1025.0
    assert chain.height() == 101
    assert chain.advance(7) == 108
    assert LocalChain.open(chain.path, now=lambda: now).height() == 108


def test_block_hashes_are_deterministic_and_end_at_the_head(chain: LocalChain) -> None:
    chain.advance(4)
    other = LocalChain.open(chain.path)
    hashes = [chain.block_hash(height) for height in range(6)]
    assert hashes == [other.block_hash(height) for height in range(6)]
    assert len(set(hashes)) == 6
    assert all(text is not None and len(text) == 66 for text in hashes)
    assert chain.block_hash(6) is None
    assert chain.block_hash(-1) is None


def test_two_chains_have_different_hashes(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert first.block_hash(1) != second.block_hash(1)


def test_weights_are_stored_scaled_to_the_largest(chain: LocalChain) -> None:
    height = chain.set_weights("validator", [1, 2], [60, 25])
    state = chain.state()
    assert state.weights == {0: [(1, 65535), (2, 27306)]}
    assert state.neurons[0].last_update == height == 1


def test_rate_limit_in_blocks(chain: LocalChain) -> None:
    chain.set_weights("validator", [1], [1])
    chain.advance(9)
    with refused("SettingWeightsTooFast") as caught:
        chain.set_weights("validator", [2], [1])
    assert "wait 1 blocks" in str(caught.value)
    assert chain.state().weights == {0: [(1, 65535)]}
    chain.advance(1)
    chain.set_weights("validator", [2], [1])
    assert chain.state().weights == {0: [(2, 65535)]}


@pytest.mark.parametrize(
    ("targets", "values", "name"),
    [
        ([1], [1, 2], "WeightVecNotEqualSize"),
        ([1, 1], [1, 2], "DuplicateUids"),
        ([9], [1], "UidVecContainInvalidOne"),
        ([1], [65536], "InvalidValue"),
        ([1], [-1], "InvalidValue"),
    ],
)
def test_bad_weights_change_nothing(
    chain: LocalChain, targets: list[int], values: list[int], name: str
) -> None:
    with refused(name):
        chain.set_weights("validator", targets, values)
    assert chain.state().weights == {}
    assert chain.state().neurons[0].last_update == 0


def test_subnet_limits_on_weights(tmp_path: Path) -> None:
    chain = make(tmp_path / "chain", min_allowed_weights=2, max_weight=0.75, version_key=3)
    with refused("IncorrectWeightVersionKey"):
        chain.set_weights("validator", [1, 2], [1, 1], version_key=2)
    with refused("WeightVecLengthIsLow"):
        chain.set_weights("validator", [1], [1], version_key=3)
    with refused("MaxWeightExceeded"):
        chain.set_weights("validator", [1, 2], [80, 20], version_key=3)
    chain.set_weights("validator", [1, 2], [74, 26], version_key=3)


def test_who_may_set_weights(chain: LocalChain) -> None:
    with refused("HotKeyNotRegisteredInSubNet"):
        chain.set_weights("stranger", [1], [1])
    with refused("NeuronNoValidatorPermit"):
        chain.set_weights("miner0", [1], [1])
    chain.adjust("validator", stake_tao=999.0)
    with refused("NotEnoughStakeToSetWeights") as caught:
        chain.set_weights("validator", [1], [1])
    assert "999" in str(caught.value)
    chain.adjust("miner0", stake_tao=1000.0, validator_permit=True)
    chain.set_weights("miner0", [0], [1])


def test_recycled_uid_starts_clean(chain: LocalChain) -> None:
    chain.set_weights("validator", [1], [1])
    chain.serve_axon("validator", "10.0.0.1", 80)
    fresh = Registration(Hotkey("fresh"), Coldkey("c2"), 5000.0, True)
    assert chain.register(fresh, replace_uid=0) == 0
    neuron = chain.state().neuron("fresh")
    assert neuron is not None
    assert (neuron.uid, neuron.last_update, neuron.axon) == (0, 0, None)
    assert chain.state().weights == {}
    assert chain.state().neuron("validator") is None
    assert chain.register(VALIDATOR) == 4
    with refused("HotKeyAlreadyRegisteredInSubNet"):
        chain.register(VALIDATOR)
    with refused("NoNeuronIdAvailable"):
        chain.register(Registration(Hotkey("late"), Coldkey("c")), replace_uid=99)


@pytest.mark.parametrize(
    ("ip", "port", "name"),
    [
        ("nowhere", 80, "InvalidIpAddress"),
        ("0.0.0.0", 80, "InvalidIpAddress"),
        ("::", 80, "InvalidIpAddress"),
        ("10.0.0.1", 0, "InvalidPort"),
        ("10.0.0.1", 65536, "InvalidPort"),
    ],
)
def test_bad_axons(chain: LocalChain, ip: str, port: int, name: str) -> None:
    with refused(name):
        chain.serve_axon("miner0", ip, port)


def test_commitment_size(chain: LocalChain) -> None:
    chain.advance(4)
    assert chain.set_commitment("miner0", [[{"Raw128": "0x" + "ab" * 128}]]) == 5
    with refused("SpaceLimitExceeded"):
        chain.set_commitment("miner0", [[{"Raw128": "0x" + "ab" * 128}], [{"Raw1": "0xab"}]])
    assert chain.state().commitments["miner0"][0] == 5


def test_create_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    with pytest.raises(ConfigError, match="not distinct"):
        make(path, neurons=[VALIDATOR, VALIDATOR])
    with pytest.raises(ConfigError, match="block_time_s is 0"):
        make(path, block_time_s=0)
    assert list(tmp_path.iterdir()) == []
    chain = make(path)
    chain.advance(5)
    with pytest.raises(ConfigError, match="already exists"):
        make(path)
    assert chain.height() == 6
    assert not list(tmp_path.glob(".chain*"))


def test_create_ignores_the_log_of_a_deleted_chain(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    old = make(path)
    old.advance(100)
    (tmp_path / "chain-wal").rename(tmp_path / "kept")
    old.close()
    path.unlink()
    (tmp_path / "kept").rename(tmp_path / "chain-wal")
    assert make(path).height() == 1


def test_open_refuses_what_is_no_chain(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        LocalChain.open(tmp_path / "missing")
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be looked at " * 50)
    with pytest.raises(ConfigError, match="not a local chain"):
        LocalChain.open(text)
    other = tmp_path / "other"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(ConfigError, match="SQLite file but not a local chain"):
        LocalChain.open(other)
    future = make(tmp_path / "future")
    future.close()
    with sqlite3.connect(future.path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(ConfigError, match="version 9"):
        LocalChain.open(future.path)


def test_a_chain_that_goes_away_comes_back(tmp_path: Path) -> None:
    chain = make(tmp_path / "chain")
    chain.path.rename(tmp_path / "elsewhere")
    with pytest.raises(ChainUnavailable, match="chain"):
        chain.height()
    assert not chain.path.exists()
    (tmp_path / "elsewhere").rename(chain.path)
    assert chain.height() == 1
    chain.path.unlink()
    replaced = make(chain.path)
    replaced.advance(10)
    assert chain.height() == 11


WRITER = """
import sys
from pathlib import Path
from node.chain import LocalChain, Registration
chain = LocalChain.open(Path(sys.argv[1]))
for index in range(int(sys.argv[3])):
    chain.advance(1)
    chain.register(Registration(f"{sys.argv[2]}-{index}", "coldkey"))
print(chain.height())
"""


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    chain = make(tmp_path / "chain.sqlite")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(chain.path), name, "40"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    seen = [chain.height()]
    deadline = time.monotonic() + 30
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        seen.append(chain.height())
    results = [writer.communicate(timeout=30) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], results
    assert seen == sorted(seen)
    state = chain.state()
    assert state.height == 81
    assert max(int(out) for out, _ in results) == 81
    assert [int(neuron.uid) for neuron in state.neurons] == list(range(84))
    names = {neuron.hotkey for neuron in state.neurons}
    assert {f"{name}-{index}" for name in "ab" for index in range(40)} <= names


@given(values=st.lists(st.integers(min_value=0, max_value=65535), min_size=4, max_size=4))
def test_stored_weights_keep_proportions(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    chain = make(tmp_path_factory.mktemp("chains") / "chain")
    chain.set_weights("validator", [0, 1, 2, 3], values)
    stored = dict(chain.state().weights.get(0, []))
    chain.close()
    if not any(values):
        assert stored == {}
        return
    assert max(stored.values()) == 65535
    for uid, value in enumerate(values):
        assert abs(stored[uid] / 65535 - value / max(values)) <= 0.5 / 65535
