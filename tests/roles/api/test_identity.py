"""Which hotkey the API takes for its own."""

from pathlib import Path

import pytest

from node.settings_model import ChainSection, NodeSection, Settings, WalletSection
from node.wallets import create_wallet
from protocol.errors import WalletError
from roles.api.identity import load_identity


def settings_of(tmp_path: Path, *, network: str = "local", name: str | None = None) -> Settings:
    """Settings with a wallet folder of our own."""
    return Settings(
        node=NodeSection(data_dir=tmp_path / "data"),
        chain=ChainSection(network=network),
        wallet=WalletSection(path=tmp_path / "wallets", name=name),
    )


def test_local_chain_generates_one_and_keeps_it(tmp_path: Path) -> None:
    first = load_identity(settings_of(tmp_path))
    assert load_identity(settings_of(tmp_path)).ss58_address == first.ss58_address
    assert not (tmp_path / "wallets").exists()


@pytest.mark.parametrize("network", ["local", "finney"])
def test_own_wallet_is_used_where_it_exists(tmp_path: Path, network: str) -> None:
    wallet = create_wallet(tmp_path / "wallets", "quasar_api")
    identity = load_identity(settings_of(tmp_path, network=network))
    assert identity.ss58_address == wallet.hotkey.ss58_address


def test_named_wallet_wins(tmp_path: Path) -> None:
    create_wallet(tmp_path / "wallets", "quasar_api")
    named = create_wallet(tmp_path / "wallets", "mine")
    assert load_identity(settings_of(tmp_path, name="mine")).ss58_address == named.hotkey.ss58_address
    with pytest.raises(WalletError, match="ghost"):
        load_identity(settings_of(tmp_path, name="ghost"))


def test_public_chain_needs_a_wallet(tmp_path: Path) -> None:
    create_wallet(tmp_path / "wallets", "other")
    with pytest.raises(WalletError, match=r"quasar_api.*other"):
        load_identity(settings_of(tmp_path, network="finney"))
