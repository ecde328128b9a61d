"""The key that encrypts the journal's secrets, and the cipher made of it."""

import base64
import binascii
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from protocol.errors import ConfigError

KEY_BYTES = 32
NONCE_BYTES = 12
KEY_VARIABLE = "QUASAR_JOURNAL_KEY"
KEY_FILE = "journal.key"


class Cipher:
    """AES-256-GCM with a fresh nonce per text, bound to the record that the text belongs to."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"the journal key must have {KEY_BYTES} bytes, not {len(key)}")
        self._aead = AESGCM(key)

    def seal(self, text: str, kind: str, key: str) -> bytes:
        """nonce + ciphertext + tag; it opens only with the same kind and key."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, text.encode(), _bound_to(kind, key))

    def open(self, sealed: bytes, kind: str, key: str) -> str | None:
        """The text, None when the key is another or the bytes were changed or moved to another record."""
        try:
            return self._aead.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(kind, key)
            ).decode()
        except (InvalidTag, ValueError):
            return None


def _bound_to(kind: str, key: str) -> bytes:
    # As JSON, because "a" + "bc" and "ab" + "c" must differ.
    return json.dumps([kind, key]).encode()


def load_key(data_dir: Path, env: Mapping[str, str], *, configured: SecretStr | None = None) -> bytes:
    """The journal's key: QUASAR_JOURNAL_KEY (64 hex digits or base64 of 32 bytes), else `journal.key`.

    The file is made, readable by its owner alone, when there is none. Raises ConfigError when the key has
    another form or others can read the file. The key itself appears in no message.
    """
    text = configured.get_secret_value() if configured is not None else env.get(KEY_VARIABLE)
    if text:
        key = _decode(text.strip())
        if key is None:
            raise ConfigError(f"{KEY_VARIABLE} must be 64 hex digits or base64 of {KEY_BYTES} bytes")
        return key
    path = data_dir / KEY_FILE
    try:
        if not path.exists():
            _create(path)
        return _read(path)
    except OSError as error:
        raise ConfigError(f"journal key {path} cannot be used: {error.strerror}") from error


def _create(path: Path) -> None:
    """Write a new key under another name first: a crash leaves no half key, of two processes one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink()


def _read(path: Path) -> bytes:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"journal key {path} has mode {mode:04o}, others can use it: run chmod 600 {path}")
    key = _decode(path.read_text(encoding="ascii", errors="replace").strip())
    if key is None:
        raise ConfigError(
            f"journal key {path} is damaged: it must hold 64 hex digits; restore it from a backup"
        )
    return key


def _decode(text: str) -> bytes | None:
    for decode in (bytes.fromhex, _from_base64):
        try:
            key = decode(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == KEY_BYTES:
            return key
    return None


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
