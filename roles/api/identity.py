"""The API's own hotkey: it signs receipts, and callers bind their requests to it."""

from pathlib import Path
from typing import Final

from bittensor import Wallet

from node.settings_model import Settings, WalletSection
from node.wallets import HotkeySigner, create_wallet, hotkey_signer, load_wallet
from protocol.errors import WalletError

GENERATED_NAME: Final = "api"


def load_identity(settings: Settings) -> HotkeySigner:
    """The signer of `wallet.api_name`; without one on the local chain, a generated one.

    Raises WalletError.
    """
    section = settings.wallet
    folder = section.path.expanduser() / section.api_name
    if settings.is_local_chain and not folder.is_dir():
        return hotkey_signer(_generated(settings.node.data_dir / "wallets"))
    try:
        return hotkey_signer(load_wallet(section, section.api_name))
    except WalletError as error:
        raise WalletError(f"the API needs a hotkey of its own (wallet.api_name): {error}") from error


def _generated(path: Path) -> Wallet:
    section = WalletSection(path=path, hotkey="default")
    if not (path / GENERATED_NAME / "hotkeys" / "default").is_file():
        return create_wallet(path, GENERATED_NAME, "default")
    return load_wallet(section, GENERATED_NAME)
