"""A devnet's folder: what is in it, and what it never touches."""

import tomllib
from pathlib import Path

import pytest

from node.chain import LocalChain
from node.settings import load_settings
from protocol.errors import UsageError
from roles.devnet.layout import MARKER, NETUID, Layout, Scale, prepare, require_devnet_folder


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return prepare(tmp_path / "devnet", scale=Scale.short(), device="cpu")


def test_every_member_has_settings_that_load_and_a_hotkey_on_the_chain(layout: Layout) -> None:
    state = LocalChain.open(layout.chain_file).state()
    assert state.parameters.block_time_s == 0.1
    registered = {neuron.hotkey: neuron for neuron in state.neurons}
    assert set(registered) == {layout.validator.hotkey, *(miner.hotkey for miner in layout.miners)}
    assert [key for key, neuron in registered.items() if neuron.validator_permit] == [layout.validator.hotkey]
    assert len({neuron.coldkey for neuron in state.neurons}) == 4
    for member in (layout.api, layout.validator, *layout.miners):
        settings = load_settings({}, config_file=member.config_file, env={}, env_file=None).settings
        assert settings.chain.local_state == layout.chain_file
        assert settings.chain.netuid == NETUID
        assert settings.api.url == layout.api_url
        assert settings.wallet.name == member.name
        assert settings.validator.unsafe_no_sandbox is False


def test_data_directories_and_remotes_are_not_shared(layout: Layout) -> None:
    configs = [tomllib.loads(miner.config_file.read_text()) for miner in layout.miners]
    assert len({config["node"]["data_dir"] for config in configs}) == 3
    remotes = {config["miner"]["fork_remote"] for config in configs}
    assert len(remotes) == 3
    for remote in remotes:
        assert (Path(remote.removeprefix("file://")) / "HEAD").is_file()


def test_only_the_wrong_miner_brings_its_own_files_and_submits_them_unverified(layout: Layout) -> None:
    def miner(name: str) -> dict[str, object]:
        return dict(tomllib.loads(getattr(layout, name).config_file.read_text())["miner"])

    assert miner("wrong")["verify_before_submit"] is False
    assert "backward Euler" in (Path(str(miner("wrong")["kernel_dir"])) / "gate.py").read_text()
    assert miner("fast")["variants"] != miner("slow")["variants"]
    assert "kernel_dir" not in miner("fast")


def test_host_without_a_sandbox_is_said_in_the_settings(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "devnet", scale=Scale.full(), device="cpu", is_sandboxed=False)
    for member in (layout.validator, layout.fast):
        config = tomllib.loads(member.config_file.read_text())
        assert config["validator"]["unsafe_no_sandbox"] is True


def test_second_devnet_starts_from_nothing(layout: Layout) -> None:
    (layout.root / "leftover").write_text("of the last run")
    (layout.fast.folder / "data").mkdir()
    (layout.root / "link").symlink_to(layout.root.parent)
    again = prepare(layout.root, scale=Scale.short(), device="cpu")
    assert not (layout.root / "leftover").exists()
    assert not (layout.fast.folder / "data").exists()
    assert layout.root.parent.is_dir()
    assert again.fast.hotkey != layout.fast.hotkey
    assert (layout.root / MARKER).is_file()


def test_folder_with_other_files_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=str(tmp_path)):
        prepare(tmp_path, scale=Scale.short(), device="cpu")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_empty_folders_are_fine_and_files_are_not(tmp_path: Path) -> None:
    require_devnet_folder(tmp_path)
    require_devnet_folder(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        require_devnet_folder(tmp_path / "file")
