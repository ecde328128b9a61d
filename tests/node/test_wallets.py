"""Wallets on disk, usable and not."""

import json
from pathlib import Path

import bittensor as bt
import pytest
import structlog
from pydantic import SecretStr

from node.settings_model import WalletSection
from node.wallets import create_wallet, hotkey_signer, list_wallets, load_wallet
from protocol.errors import WalletError


def section(path: Path, **options: object) -> WalletSection:
    return WalletSection(path=path, **options)  # type: ignore[arg-type]


def test_create_and_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = create_wallet(tmp_path, "miner", "hot")
    loaded = load_wallet(section(tmp_path, hotkey="hot"), "miner")
    assert loaded.hotkey.ss58_address == made.hotkey.ss58_address
    assert made.coldkeypub.ss58_address != made.hotkey.ss58_address
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 4
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_create_adds_hotkeys_but_replaces_nothing(tmp_path: Path) -> None:
    first = create_wallet(tmp_path, "miner", "one")
    second = create_wallet(tmp_path, "miner", "two")
    assert first.hotkey.ss58_address != second.hotkey.ss58_address
    assert first.coldkeypub.ss58_address == second.coldkeypub.ss58_address
    with pytest.raises(WalletError, match="miner/one already exists"):
        create_wallet(tmp_path, "miner", "one")
    assert (
        load_wallet(section(tmp_path, hotkey="one"), "miner").hotkey.ss58_address == first.hotkey.ss58_address
    )


def test_signer_signs_as_the_hotkey(tmp_path: Path) -> None:
    wallet = create_wallet(tmp_path, "miner")
    signer = hotkey_signer(load_wallet(section(tmp_path), "miner"))
    signature = signer.sign(b"text")
    assert signer.ss58_address == wallet.hotkey.ss58_address
    assert len(signature) == 64
    assert bt.sp_core.verify(b"text", signature, signer.ss58_address, 1)
    assert not bt.sp_core.verify(b"other", signature, signer.ss58_address, 1)
    assert repr(signer) == f"HotkeySigner({signer.ss58_address})"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = create_wallet(Path("~/wallets"), "miner")
    assert (tmp_path / "wallets" / "miner").is_dir()
    assert load_wallet(section(Path("~/wallets")), "miner").hotkey.ss58_address == made.hotkey.ss58_address


def test_missing_wallets_list_what_exists(tmp_path: Path) -> None:
    with pytest.raises(WalletError, match=r"folder '.*/nowhere' does not exist"):
        load_wallet(section(tmp_path / "nowhere"), "miner")
    with pytest.raises(WalletError, match=r"'miner' does not exist in .* which has no wallets"):
        load_wallet(section(tmp_path), "miner")
    create_wallet(tmp_path, "a", "one")
    create_wallet(tmp_path, "a", "two")
    (tmp_path / "b").mkdir()
    assert list_wallets(tmp_path) == ["a/one", "a/two", "b"]
    with pytest.raises(WalletError, match="which has the wallets a/one, a/two, b"):
        load_wallet(section(tmp_path), "miner")
    with pytest.raises(WalletError, match=r"hotkey 'default' of wallet 'a' does not exist .* a/one, a/two"):
        load_wallet(section(tmp_path), "a")
    assert list_wallets(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("name", "hotkey"), [("../x", "h"), ("a/b", "h"), ("", "h"), ("a", "../h"), ("..", "h")]
)
def test_names_are_file_names(tmp_path: Path, name: str, hotkey: str) -> None:
    with pytest.raises(WalletError, match="is not a file name"):
        load_wallet(section(tmp_path, hotkey=hotkey), name)


def test_watch_only_wallets_are_refused(tmp_path: Path) -> None:
    wallet = create_wallet(tmp_path, "miner")
    file = Path(wallet.hotkey_file.path)
    full = json.loads(file.read_text())
    file.write_text(json.dumps({key: full[key] for key in ("accountId", "publicKey", "ss58Address")}))
    with pytest.raises(WalletError, match=r"miner/default is watch-only .*no private key"):
        load_wallet(section(tmp_path), "miner")
    file.unlink()
    with pytest.raises(WalletError, match=r"miner/default in .* is watch-only"):
        load_wallet(section(tmp_path), "miner")


def test_garbage_is_named(tmp_path: Path) -> None:
    wallet = create_wallet(tmp_path, "miner")
    Path(wallet.hotkey_file.path).write_text("sekrit words that are no mnemonic")
    with pytest.raises(WalletError, match="cannot be read from") as caught:
        load_wallet(section(tmp_path), "miner")
    assert "sekrit" not in str(caught.value)


def test_encrypted_hotkeys_need_the_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_wallet(tmp_path, "miner")
    wallet = bt.Wallet("miner", "locked", str(tmp_path))
    wallet.create_new_hotkey(hotkey_password="open sesame", suppress=True)
    with pytest.raises(WalletError, match="is encrypted: set WALLET_PASSWORD"):
        load_wallet(section(tmp_path, hotkey="locked"), "miner")
    with structlog.testing.capture_logs() as logs:
        with pytest.raises(WalletError, match="the password is wrong") as caught:
            load_wallet(section(tmp_path, hotkey="locked", password=SecretStr("guess")), "miner")
        good = section(tmp_path, hotkey="locked", password=SecretStr("open sesame"))
        loaded = load_wallet(good, "miner")
    assert hotkey_signer(loaded).ss58_address == wallet.hotkey.ss58_address
    printed = capsys.readouterr()
    shown = f"{logs} {caught.value} {loaded!r} {printed.out} {printed.err}"
    assert "guess" not in shown
    assert "sesame" not in shown


def test_keyfiles_open_to_others_are_reported(tmp_path: Path) -> None:
    wallet = create_wallet(tmp_path, "miner")
    with structlog.testing.capture_logs() as logs:
        load_wallet(section(tmp_path), "miner")
        assert logs == []
        Path(wallet.hotkey_file.path).chmod(0o644)
        load_wallet(section(tmp_path), "miner")
    assert [entry["event"] for entry in logs] == ["keyfile is readable by others"]


def encrypted(root: Path) -> None:
    """A wallet whose hotkey is encrypted with "secret"."""
    wallet = bt.Wallet(name="miner", path=str(root))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=True, hotkey_password="secret", suppress=True)


class Terminal:
    """Standard input of somebody who sits in front of it."""

    def isatty(self) -> bool:
        return True


def test_password_is_asked_for_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypted(tmp_path)
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "secret"

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", answer)
    assert load_wallet(section(tmp_path), "miner").hotkey.ss58_address
    assert asked == ["Password of hotkey miner/default: "]
    monkeypatch.setattr("getpass.getpass", lambda prompt: "wrong")
    with pytest.raises(WalletError, match="the password is wrong"):
        load_wallet(section(tmp_path), "miner")
    monkeypatch.setattr("getpass.getpass", lambda prompt: "")
    with pytest.raises(WalletError, match="WALLET_PASSWORD"):
        load_wallet(section(tmp_path), "miner")


def test_key_that_others_may_replace_is_refused(tmp_path: Path) -> None:
    wallet = create_wallet(tmp_path, "miner")
    Path(wallet.hotkey_file.path).chmod(0o622)
    with pytest.raises(WalletError, match=r"may be changed by others \(mode 0622\): chmod 600"):
        load_wallet(section(tmp_path), "miner")
