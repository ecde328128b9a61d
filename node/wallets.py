"""Bittensor wallets on disk: the hotkey that signs, and sentences for everything that can be wrong."""

import getpass
import stat
import sys
from pathlib import Path
from typing import Any

import bittensor as bt
import structlog
from bittensor.keyfiles import KeyfileError, WrongPasswordError, resolve_key_password

from node.settings_model import WalletSection
from protocol.errors import WalletError

log = structlog.get_logger(__name__)


class HotkeySigner:
    """Signs with a wallet's hotkey (the Signer protocol); shows its address and nothing else."""

    __slots__ = ("_keypair", "ss58_address")

    def __init__(self, keypair: Any) -> None:
        self._keypair = keypair
        self.ss58_address: str = str(keypair.ss58_address)

    def __repr__(self) -> str:
        return f"HotkeySigner({self.ss58_address})"

    def sign(self, data: bytes) -> bytes:
        """Signature of 64 bytes (sr25519 or ed25519, as the key is)."""
        return bytes(self._keypair.sign(data))


def list_wallets(path: Path) -> list[str]:
    """Wallets in a folder as `name/hotkey`, sorted; a wallet without hotkeys as `name`."""
    found: list[str] = []
    for wallet in sorted(path.expanduser().glob("*")) if path.expanduser().is_dir() else []:
        if wallet.is_dir():
            hotkeys = _hotkeys(wallet)
            found.extend(f"{wallet.name}/{hotkey}" for hotkey in hotkeys)
            if not hotkeys:
                found.append(wallet.name)
    return found


def load_wallet(section: WalletSection, name: str) -> bt.Wallet:
    """The wallet `name` with the section's hotkey unlocked, ready to sign.

    The coldkey is never touched. The password of an encrypted key comes from the settings, or is asked for on
    a terminal. Raises WalletError: missing (lists what exists), unreadable, writable for others, encrypted
    without a password or with a wrong one, or watch-only.
    """
    root = section.path.expanduser()
    for what, text in (("wallet name", name), ("hotkey name", section.hotkey)):
        if text in ("", ".", "..") or Path(text).name != text:
            raise WalletError(f"{what} {text!r} is not a file name")
    if not root.is_dir():
        raise WalletError(
            f"wallet folder {str(root)!r} does not exist: create a wallet with `btcli wallet create` "
            "or set wallet.path"
        )
    if not (root / name).is_dir():
        raise WalletError(f"wallet {name!r} does not exist in {str(root)!r}, which has {_listed(root)}")
    wallet = bt.Wallet(name=name, hotkey=section.hotkey, path=str(root))
    file = Path(wallet.hotkey_file.path)
    if not file.is_file():
        raise WalletError(_missing_hotkey(root, name, section.hotkey, wallet))
    keypair = _unlocked(wallet, section)
    _check_signs(keypair, f"{name}/{section.hotkey}")
    _check_mode(file)
    return wallet


def hotkey_signer(wallet: Any) -> HotkeySigner:
    """Signer of a loaded wallet."""
    return HotkeySigner(wallet.hotkey)


def create_wallet(path: Path, name: str, hotkey: str = "default") -> bt.Wallet:
    """A new random, unencrypted hotkey (and coldkey, where the wallet has none), files 0600.

    For the local chain and tests; mnemonics are shown nowhere. Raises WalletError when the hotkey exists.
    """
    root = path.expanduser()
    wallet = bt.Wallet(name=name, hotkey=hotkey, path=str(root))
    if wallet.hotkey_file.exists_on_device():
        raise WalletError(f"wallet {name}/{hotkey} already exists in {str(root)!r}: load it instead")
    if not wallet.coldkey_file.exists_on_device():
        wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    return wallet


def _hotkeys(wallet: Path) -> list[str]:
    folder = wallet / "hotkeys"
    if not folder.is_dir():
        return []
    return sorted(
        file.name for file in folder.iterdir() if file.is_file() and not file.name.endswith("pub.txt")
    )


def _listed(root: Path) -> str:
    found = list_wallets(root)
    return "the wallets " + ", ".join(found) if found else "no wallets"


def _missing_hotkey(root: Path, name: str, hotkey: str, wallet: bt.Wallet) -> str:
    if Path(wallet.hotkeypub_file.path).is_file():
        return (
            f"wallet {name}/{hotkey} in {str(root)!r} is watch-only (it holds a public hotkey): "
            "put the hotkey itself on this machine"
        )
    return f"hotkey {hotkey!r} of wallet {name!r} does not exist in {str(root)!r}, which has {_listed(root)}"


def _unlocked(wallet: bt.Wallet, section: WalletSection) -> Any:
    label = f"{wallet.name}/{wallet.hotkey_str}"
    file = wallet.hotkey_file
    try:
        if not file.is_encrypted():
            return wallet.get_hotkey()
        given = section.password.get_secret_value() if section.password else None
        password = resolve_key_password(given, env_var_name=file.env_var_name(), allow_prompt=False)
        if password is None and sys.stdin.isatty():
            password = getpass.getpass(f"Password of hotkey {label}: ")
        if not password:
            raise WalletError(f"hotkey {label} is encrypted: set WALLET_PASSWORD, or start it on a terminal")
        return wallet.get_hotkey(password)
    except WrongPasswordError as error:
        raise WalletError(f"hotkey {label} is encrypted and the password is wrong") from error
    except (KeyfileError, OSError, ValueError) as error:
        raise WalletError(f"hotkey {label} cannot be read from {file.path!r}: {error}") from error


def _check_mode(file: Path) -> None:
    """Refuse a key that others may replace, warn about one that they may read."""
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o022:
        raise WalletError(f"keyfile {str(file)!r} may be changed by others (mode {mode:04o}): chmod 600 it")
    if mode & 0o044:
        log.warning("keyfile is readable by others", file=str(file), mode=f"{mode:04o}", fix="chmod 600")


def _check_signs(keypair: Any, label: str) -> None:
    try:
        keypair.sign(b"quasar")
    except (ValueError, TypeError, KeyfileError) as error:
        raise WalletError(
            f"hotkey {label} is watch-only (its file holds no private key): "
            "put the hotkey itself on this machine"
        ) from error
