"""Wrong use of the binary: one sentence, the stated exit code, never a traceback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from node.chain.local import LocalChain, Registration
from node.wallets import create_wallet


def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run quasar-node in an empty folder with an environment of our own."""
    # Locks of its own: nobody else's measurements are waited for.
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "XDG_RUNTIME_DIR": str(cwd), **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "roles", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=cwd,
        env=environment,
        check=False,
    )


def assert_sentence(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check exit code and message."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.fixture
def local_config(tmp_path: Path) -> Path:
    """Return a config.toml for a local chain on which wallet `me` is a plain miner."""
    wallet = create_wallet(tmp_path / "wallets", "me", "default")
    stranger = create_wallet(tmp_path / "wallets", "stranger", "default")
    LocalChain.create(
        tmp_path / "chain.sqlite",
        block_time_s=0.25,
        netuid=24,
        owner_hotkey=wallet.hotkey.ss58_address,
        neurons=[
            Registration(
                hotkey=wallet.hotkey.ss58_address,
                coldkey=wallet.coldkeypub.ss58_address,
                stake_tao=0.0,
                validator_permit=False,
            )
        ],
    )
    assert stranger.hotkey.ss58_address != wallet.hotkey.ss58_address
    config = tmp_path / "config.toml"
    config.write_text(
        tomli_w.dumps(
            {
                "node": {"data_dir": str(tmp_path / "data"), "device": "cpu", "metrics_port": 0},
                "chain": {"network": "local", "local_state": str(tmp_path / "chain.sqlite")},
                "wallet": {"path": str(tmp_path / "wallets"), "name": "me"},
                "api": {"url": "http://127.0.0.1:9", "port": 0},
            }
        )
    )
    return config


def test_neither_role_nor_command(tmp_path: Path) -> None:
    assert_sentence(run(cwd=tmp_path), 2, "--role")


def test_unknown_role(tmp_path: Path) -> None:
    assert_sentence(run("--role", "juggler", cwd=tmp_path), 2, "juggler")


def test_missing_config_file(tmp_path: Path) -> None:
    assert_sentence(run("--role", "api", "--config", "nowhere.toml", cwd=tmp_path), 78, "nowhere.toml")


def test_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[miner]\ntarget_lenght = 5\n")
    result = run("--role", "miner", "--config", "config.toml", cwd=tmp_path)
    assert_sentence(result, 78, "target_lenght", "5")


def test_number_that_is_nan(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[miner]\noptimization_interval_s = nan\n")
    result = run("--role", "miner", "--config", "config.toml", cwd=tmp_path)
    assert_sentence(result, 78, "optimization_interval_s", "NaN")


def test_wallet_that_does_not_exist(tmp_path: Path, local_config: Path) -> None:
    result = run("--role", "validator", "--config", str(local_config), "--wallet.name", "ghost", cwd=tmp_path)
    assert_sentence(result, 78, "ghost", "me")


def test_port_in_use(tmp_path: Path, local_config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(
            "--role", "api", "--config", str(local_config), "--set", f"api.port={port}", cwd=tmp_path
        )
    assert_sentence(result, 69, str(port))


def test_validator_without_permit(tmp_path: Path, local_config: Path) -> None:
    result = run("--role", "validator", "--config", str(local_config), cwd=tmp_path)
    assert_sentence(result, 77, "permit")


def test_hotkey_that_is_not_registered(tmp_path: Path, local_config: Path) -> None:
    for role in ("miner", "validator"):
        result = run("--role", role, "--config", str(local_config), "--wallet.name", "stranger", cwd=tmp_path)
        assert_sentence(result, 77, "not registered")


def test_local_chain_without_state(tmp_path: Path) -> None:
    result = run("--role", "api", "--subtensor.network", "local", "--data-dir", "data", cwd=tmp_path)
    assert_sentence(result, 78, "local_state")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize("role", ["miner", "inference"])
def test_no_gpu(role: str, tmp_path: Path, local_config: Path) -> None:
    result = run("--role", role, "--config", str(local_config), cwd=tmp_path, env={"DEVICE": "cuda"})
    assert_sentence(result, 78, "cuda", "GPU")


def test_config_show_redacts_secrets_and_names_origins(tmp_path: Path, local_config: Path) -> None:
    env = {"GITHUB_TOKEN": "ghp_very_secret", "TARGET_SEQUENCE_LENGTH": "200000"}
    result = run("config", "show", "--json", "--config", str(local_config), cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert "ghp_very_secret" not in result.stdout + result.stderr
    rows = {row["key"]: row for row in json.loads(result.stdout)}
    assert rows["miner.target_sequence_length"]["value"] in (200000, "200000")
    assert "TARGET_SEQUENCE_LENGTH" in rows["miner.target_sequence_length"]["origin"]
    assert rows["api.round_s"]["origin"] == "default"


def test_bench_prints_a_document_of_checked_rows(tmp_path: Path) -> None:
    result = run(
        "bench", "--seq-len", "32", "--repetitions", "2", "--json", cwd=tmp_path, env={"DEVICE": "cpu"}
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert {row["operator"] for row in document["rows"]} >= {"quasar chunk", "float32 reference"}
    assert all(row["relative_error"] < 1e-5 for row in document["rows"])
    assert document["machine"]["triton"]


def test_bench_baseline_is_the_unoptimised_kernel_at_the_target_length(tmp_path: Path) -> None:
    env = {"DEVICE": "cpu", "TARGET_SEQUENCE_LENGTH": "48"}
    result = run("bench", "--baseline", "--repetitions", "1", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert "quasar recurrent" in result.stdout
    assert "48" in result.stdout
    assert "SDPA" not in result.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--seq-len", "0"), ("--seq-len", "0")),
        (("--heads", "-1"), ("--heads", "-1")),
        (("--plot", "nowhere/x.png"), ("--plot", "nowhere/x.png")),
        (("--layer", "--decode"), ("--layer", "--decode")),
    ],
)
def test_bench_with_a_number_that_makes_no_sense(
    flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_sentence(run("bench", *flags, cwd=tmp_path, env={"DEVICE": "cpu"}), 2, *words)


def test_tune_finds_parameters_and_says_where_they_are(tmp_path: Path) -> None:
    env = {"DEVICE": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = run("tune", "--seq-len", "32", "--trials", "2", "--json", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["trials"] == 2
    assert Path(document["file"]).is_file()
    assert document["configuration"]["schedule"] in ("chunk", "recurrent")
    assert len(document["curve"]) == 2
    assert_sentence(run("tune", "--trials", "0", cwd=tmp_path, env=env), 2, "--trials", "0")
    assert_sentence(run("tune", "--time-limit", "-1", cwd=tmp_path, env=env), 2, "--time-limit", "-1")


def test_tune_from_the_baseline_begins_with_the_plain_kernel_and_ends_beside_the_preset(
    tmp_path: Path,
) -> None:
    env = {"DEVICE": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    picture = tmp_path / "search.png"
    flags = ("--from-baseline", "--seq-len", "32", "--trials", "3", "--json", "--plot", str(picture))
    result = run("tune", *flags, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["curve"][0]["configuration"] == {"schedule": "recurrent"}
    assert document["baseline_ms"] == document["curve"][0]["milliseconds"]
    assert document["preset_over_found"] == document["preset_ms"] / document["found_ms"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-5"])
def test_devnet_with_a_deadline_that_is_none(value: str, tmp_path: Path) -> None:
    result = run("devnet", f"--timeout={value}", "--dir", "devnet", cwd=tmp_path)
    assert_sentence(result, 2, "--timeout")
    assert not (tmp_path / "devnet").exists()
