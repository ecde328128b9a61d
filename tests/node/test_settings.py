"""Settings: precedence with origins, the seed's names, and one sentence for everything wrong."""

import argparse
import math
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.settings import LoadedSettings, add_arguments, describe, load_settings, overrides_from
from node.settings_model import Settings
from node.settings_names import SEED_NAMES, env_name, is_secret, keys, seed_name
from protocol.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(
    overrides: dict[str, object] | None = None,
    *,
    toml: str | None = None,
    env: dict[str, str] | None = None,
    dotenv: str | None = None,
) -> LoadedSettings:
    if toml is not None:
        Path("config.toml").write_text(toml)
    if dotenv is not None:
        Path(".env").write_text(dotenv)
    return load_settings(overrides or {}, config_file=None, env=env or {})


def refusal(**places: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**places)  # type: ignore[arg-type]
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_without_any_file() -> None:
    loaded = load()
    assert loaded.settings.miner == Settings().miner
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.settings.wallet.path == Path("~/.bittensor/wallets").expanduser()


def test_each_place_wins_over_those_below_and_is_named() -> None:
    toml = "[miner]\ntarget_sequence_length = 1\nagent_iterations = 1\npoll_s = 1\nsubmit_margin = 0.5"
    dotenv = "TARGET_SEQUENCE_LENGTH=2\nAGENT_ITERATIONS=2\nQUASAR_MINER__POLL_S=2"
    env = {"TARGET_SEQUENCE_LENGTH": "3", "QUASAR_MINER__AGENT_ITERATIONS": "3"}
    loaded = load({"miner.target_sequence_length": "4"}, toml=toml, dotenv=dotenv, env=env)
    miner = loaded.settings.miner
    assert (miner.target_sequence_length, miner.agent_iterations, miner.poll_s, miner.submit_margin) == (
        4,
        3,
        2,
        0.5,
    )
    assert {
        key: loaded.origins[f"miner.{key}"] for key in ("target_sequence_length", "agent_iterations")
    } == {
        "target_sequence_length": "command line",
        "agent_iterations": "environment QUASAR_MINER__AGENT_ITERATIONS",
    }
    assert loaded.origins["miner.poll_s"] == ".env QUASAR_MINER__POLL_S"
    assert loaded.origins["miner.submit_margin"] == "config.toml"
    assert loaded.origins["miner.branch"] == "default"


VALUES = {
    "VALIDATOR_API_URL": "http://api:1",
    "DATABASE_URL": "sqlite+aiosqlite:///x",
    "NETUID": "7",
    "SUBTENSOR_NETWORK": "finney",
    "WALLET_PATH": "/w",
    "TARGET_SEQUENCE_LENGTH": "4096",
    "AGENT_ITERATIONS": "9",
    "OPTIMIZATION_INTERVAL": "1.5",
    "MINER_INFERENCE_PORT": "9001",
    "DEVICE": "cuda:3",
}


@pytest.mark.parametrize("name", SEED_NAMES)
def test_every_seed_name_sets_its_key(name: str) -> None:
    text = VALUES.get(name, "some-text")
    loaded = load(env={name: text})
    section, _, key = SEED_NAMES[name].partition(".")
    value = getattr(getattr(loaded.settings, section), key)
    value = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    assert str(value) == text
    assert loaded.origins[SEED_NAMES[name]] == f"environment {name}"


NUMBERS_UNSET = {
    "require_auth": "true",
    "external_port": "1",
    "max_sequence_length": "64",
    "vram_limit_mb": "4096",
    "memory_limit_mb": "4096",
}
"""Values for keys that have no default and take no text."""


@pytest.mark.parametrize("key", list(keys()))
def test_every_key_has_its_own_variable(key: str) -> None:
    section, _, name = key.partition(".")
    default = getattr(getattr(Settings(), section), name)
    if isinstance(default, tuple):
        text = ",".join(default)
    elif default is None:
        text = NUMBERS_UNSET.get(name, "x")
    else:
        text = str(default)
    loaded = load(env={env_name(key): text})
    if text:
        assert loaded.origins[key] == f"environment {env_name(key)}"
    if default is not None and "~" not in text:
        assert getattr(getattr(loaded.settings, section), name) == default


def test_lists_come_as_json_or_with_commas() -> None:
    loaded = load(env={"QUASAR_API__ALLOWED_GIT_HOSTS": "github.com, git.example.org"})
    assert loaded.settings.api.allowed_git_hosts == ("github.com", "git.example.org")
    loaded = load({"miner.variants": '["chunk", "recurrent"]'})
    assert loaded.settings.miner.variants == ("chunk", "recurrent")
    assert "not a JSON list" in refusal(env={"QUASAR_MINER__VARIANTS": "[oops"})


def test_empty_variable_means_not_set() -> None:
    loaded = load(env={"GITHUB_TOKEN": "", "NETUID": " "}, dotenv='GITHUB_USERNAME=""')
    assert loaded.settings.miner.github_token is None
    assert loaded.settings.chain.netuid == 24
    assert loaded.settings.miner.github_username is None


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        (
            "[miner]\ntarget_lenght = 5",
            "config.toml: unknown key [miner] target_lenght = 5: did you mean target_sequence_length?",
        ),
        ("[minor]\nx = 1", "config.toml: unknown table [minor]: did you mean miner?"),
        ("netuid = 3", "config.toml: unknown table [netuid] = 3"),
        ("miner = 3", "config.toml: miner = 3: must be a table: write [miner]"),
        ("[chain]\nport = 8000", "config.toml: unknown key [chain] port = 8000: it belongs to [api]"),
        (
            "[miner]\nagent_iterations = -1",
            "config.toml: [miner] agent_iterations = -1: input should be greater",
        ),
        ("[node]\nlog_level = 'loud'", 'config.toml: [node] log_level = "loud": input should be'),
        ("[miner]\nsubmit_margin = nan", "config.toml: [miner] submit_margin = NaN: "),
        ("[api]\nmin_validator_stake_tao = nan", "config.toml: [api] min_validator_stake_tao = NaN: "),
        (
            "[miner]\noptimization_interval_s = inf",
            "config.toml: [miner] optimization_interval_s = Infinity: ",
        ),
        ("[miner]\ngithub_token = 'hunter2'", "config.toml: [miner] github_token is a secret"),
        ("[api]\ndatabase_url = 'postgresql://u:hunter2@h/d'", "config.toml: [api] database_url is a secret"),
        ("[wallet]\npasswort = 'hunter2'", "config.toml: unknown key [wallet] passwort"),
        ("[miner\n", "config.toml: not TOML: "),
    ],
)
def test_wrong_config_file_is_one_sentence(toml: str, sentence: str) -> None:
    text = refusal(toml=toml)
    assert text.startswith(sentence), text
    if "passwort" not in toml:
        assert "hunter2" not in text


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (
            {"QUASAR_MINER__TARGET_LENGTH": "5"},
            'environment: unknown variable QUASAR_MINER__TARGET_LENGTH = "5": did you mean ',
        ),
        (
            {"QUASAR_WALLET__PASSWORDS": "hunter2"},
            "environment: unknown variable QUASAR_WALLET__PASSWORDS = ****",
        ),
        ({"NETUID": "many"}, 'environment NETUID: [chain] netuid = "many": input should be a valid integer'),
        (
            {"OPTIMIZATION_INTERVAL": "nan"},
            "environment OPTIMIZATION_INTERVAL: [miner] optimization_interval_s = ",
        ),
        ({"DEVICE": "tpu"}, 'environment DEVICE: [node] device = "tpu": '),
    ],
)
def test_wrong_variable_is_one_sentence(env: dict[str, str], sentence: str) -> None:
    text = refusal(env=env)
    assert text.startswith(sentence), text
    assert "hunter2" not in text
    text = refusal(dotenv="\n".join(f"{name}={value}" for name, value in env.items()))
    assert text.startswith(sentence.replace("environment", ".env", 1)), text


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = refusal(env={"NETUID": "x", "AGENT_ITERATIONS": "-1"})
    assert "netuid" in text
    assert "agent_iterations" in text


def test_other_programs_variables_in_env_file_are_fine() -> None:
    dotenv = "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True\nAWS_SECRET=1\n# comment\nFOO\n"
    assert load(dotenv=dotenv).worker_env == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def test_malformed_line_of_env_file_is_named_but_not_shown() -> None:
    text = refusal(dotenv="NETUID=3\nWALLET_PASSWORD='hunter2\n")
    assert text == ".env: line 2 is not NAME=value: correct it"


def test_env_file_is_not_interpolated() -> None:
    loaded = load(dotenv="WALLET_PASSWORD='a${HOME}b'")
    assert loaded.settings.wallet.password is not None
    assert loaded.settings.wallet.password.get_secret_value() == "a${HOME}b"


def test_named_files_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file .*absent.toml does not exist: create it"):
        load_settings({}, config_file=tmp_path / "absent.toml", env={})
    with pytest.raises(ConfigError, match=r"file .*absent.env does not exist"):
        load_settings({}, config_file=None, env={}, env_file=tmp_path / "absent.env")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_settings({}, config_file=tmp_path, env={})
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings({}, config_file=None, env={})


def test_command_line_refuses_unknown_keys_and_secrets() -> None:
    assert refusal(overrides={"miner.foo": "1"}).startswith('command line: unknown key miner.foo = "1"')
    text = refusal(overrides={"miner.github_token": "hunter2"})
    assert "hunter2" not in text
    assert "QUASAR_MINER__GITHUB_TOKEN" in text


def test_description_shows_everything_but_secrets() -> None:
    rows = describe(load(env={"WALLET_PASSWORD": "hunter2", "GITHUB_TOKEN": "hunter2", "NETUID": "5"}))
    assert [key for key, _, _ in rows] == list(keys())
    assert "hunter2" not in str(rows)
    shown = {key: (value, origin) for key, value, origin in rows}
    assert shown["wallet.password"] == ("********", "environment WALLET_PASSWORD")
    assert shown["chain.netuid"] == ("5", "environment NETUID")
    assert shown["api.database_url"] == ("(not set)", "default")
    assert shown["miner.variants"] == ('["chunk"]', "default")


def parse(*argv: str) -> argparse.Namespace:
    """As the program does it: the same flags before and after the subcommand."""
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    add_arguments(flags)
    parser = argparse.ArgumentParser(parents=[flags])
    parser.add_subparsers().add_parser("status", parents=[flags])
    return parser.parse_args(argv)


def test_bittensor_flags_as_they_stand() -> None:
    wallet = ["--wallet.name", "w", "--wallet.hotkey", "h", "--wallet.path", "/p"]
    chain = ["--subtensor.network", "finney", "--netuid", "3", "--axon.port", "8091"]
    args = parse(*wallet, *chain, "--data-dir", "d", "--logging.debug", "--set", "miner.branch=a=b", "status")
    settings = load(overrides_from(args)).settings
    assert (settings.wallet.name, settings.wallet.hotkey, settings.wallet.path) == ("w", "h", Path("/p"))
    assert (settings.chain.network, settings.chain.netuid, settings.inference.external_port) == (
        "finney",
        3,
        8091,
    )
    assert (settings.node.data_dir, settings.node.log_level, settings.miner.branch) == (
        Path("d"),
        "debug",
        "a=b",
    )


def test_flags_after_the_subcommand_and_endpoint_over_network() -> None:
    args = parse(
        "--netuid", "3", "status", "--subtensor.chain_endpoint", "ws://c", "--subtensor.network", "test"
    )
    assert overrides_from(args) == {"chain.netuid": "3", "chain.network": "ws://c"}
    assert overrides_from(parse()) == {}


def test_set_without_value_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"write --set section.key=value") as caught:
        overrides_from(parse("--set", "miner.branch"))
    assert caught.value.exit_code == 2


def test_shipped_config_file_equals_the_defaults_and_names_every_key() -> None:
    text = (ROOT / "config.toml").read_text()
    loaded = load_settings({}, config_file=ROOT / "config.toml", env={})
    assert loaded.settings == load().settings
    tables = tomllib.loads(text)
    blocks = dict(zip(tables, re.split(r"^\[\w+\]\n", text, flags=re.MULTILINE)[1:], strict=True))
    for key in keys():
        section, _, name = key.partition(".")
        has_default = getattr(getattr(Settings(), section), name) is not None
        line = rf"^{'' if has_default else '#'}{name} = "
        before = re.split(line, blocks[section], flags=re.MULTILINE)
        assert len(before) == 2, f"config.toml must hold {key} once"
        comment = before[0].rstrip("\n").rsplit("\n\n", 1)[-1].splitlines()
        variables = [seed_name(key), env_name(key)] if seed_name(key) else [env_name(key)]
        assert comment[-1] == f"# [{' or '.join(filter(None, variables))}]", key
        assert len(comment) >= 2
        assert all(part.startswith("# ") for part in comment), key


def test_shipped_config_examples_are_valid() -> None:
    """The commented examples of keys without a default, taken together, are settings that load."""
    lines = (ROOT / "config.toml").read_text().splitlines()
    text = "\n".join(line[1:] if re.match(r"#\w+ = [^\"]|#\w+ = \"[^\"]", line) else line for line in lines)
    loaded = load(toml=text)
    left_out = {key for key, origin in loaded.origins.items() if origin == "default"}
    assert left_out == {key for key in keys() if is_secret(key)}


def test_shipped_env_example_loads_and_changes_nothing() -> None:
    loaded = load_settings({}, config_file=None, env={}, env_file=ROOT / ".env.example")
    assert loaded.settings == load().settings
    text = (ROOT / ".env.example").read_text()
    assert [name for name in SEED_NAMES if f"\n{name}=" not in text] == []


@given(value=st.floats() | st.integers() | st.text(max_size=20))
def test_no_value_gets_through_as_nan_or_as_another_error(value: object) -> None:
    try:
        loaded = load_settings(
            {"miner.optimization_interval_s": value}, config_file=None, env={}, env_file=None
        )
    except ConfigError:
        return
    assert math.isfinite(loaded.settings.miner.optimization_interval_s)
