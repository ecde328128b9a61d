"""The API's own hotkey: it signs receipts, and callers bind their requests to it."""

from pathlib import Path
from typing import Final

from bittensor import Wallet

from node.settings_model import Settings, WalletSection
from node.wallets import HotkeySigner, create_wallet, hotkey_signer, load_wallet
from protocol.errors import WalletError

GENERATED_NAME: Final = "api"
GENERATED_HOTKEY: Final = "default"


def load_identity(settings: Settings) -> HotkeySigner:
    """The signer of `wallet.name`, else of `wallet.api_name`, else (local chain) of one made for this API.

    Raises WalletError.
    """
    section = settings.wallet
    folder = section.path.expanduser() / section.api_name
    if section.name is None and settings.is_local_chain and not folder.is_dir():
        return hotkey_signer(_generated(settings.node.data_dir / "wallets"))
    try:
        return hotkey_signer(load_wallet(section, section.name or section.api_name))
    except WalletError as error:
        raise WalletError(f"the API needs a hotkey of its own (wallet.api_name): {error}") from error


def _generated(path: Path) -> Wallet:
    if not (path / GENERATED_NAME / "hotkeys" / GENERATED_HOTKEY).is_file():
        return create_wallet(path, GENERATED_NAME, GENERATED_HOTKEY)
    return load_wallet(WalletSection(path=path, hotkey=GENERATED_HOTKEY), GENERATED_NAME)
