"""Where submissions live: the target files inside a fork, and the fork URLs and commit hashes allowed."""

import re
from collections.abc import Collection
from typing import Final, NoReturn

from protocol.errors import InvalidForkUrl
from protocol.types import CommitHash

TARGET_DIR: Final = "fla/ops/quasar"
TARGET_FILES: Final = (
    "chunk.py",
    "fused_recurrent.py",
    "forward_substitution.py",
    "chunk_intra_token_parallel.py",
    "gate.py",
)
"""By priority, the first first (source: seed, target files)."""

MAX_URL_CHARS: Final = 512
_SHOWN_CHARS: Final = 160

_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,99}")
_FILE_PATH = re.compile(r"(?:/[A-Za-z0-9_.+=@~][A-Za-z0-9_.+=@~-]*)+")
_COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
_USER_INFO = re.compile(r"//[^/]*@")


def check_fork_url(
    url: str, *, allowed_hosts: Collection[str] = ("github.com",), allow_file: bool = False
) -> str:
    """Check a fork URL and return its normal form: lower-case host, no `.git` at the end.

    Allowed is `https://<host>/<owner>/<repository>` with an optional `.git`, the host one of `allowed_hosts`,
    and, with `allow_file` (the local chain), `file:///absolute/path`, which is returned as it stands.

    Raises:
        InvalidForkUrl: anything else; the text names the field, the value (without credentials) and the rule.
    """
    if len(url) > MAX_URL_CHARS:
        _refuse(url, f"is longer than {MAX_URL_CHARS} characters")
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        _refuse(url, "holds spaces, control characters, backslashes or characters outside ASCII")
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "file":
        return _check_file_url(url, rest, allow_file)
    if not separator or scheme != "https":
        _refuse(url, "must start with https://")
    if "?" in rest or "#" in rest or "%" in rest:
        _refuse(url, "must not hold a query, a fragment or percent escapes")
    host, _, path = rest.partition("/")
    if "@" in host:
        _refuse(url, "must not hold credentials")
    if ":" in host:
        _refuse(url, "must not name a port")
    host = host.lower()
    if host not in {allowed.lower() for allowed in allowed_hosts}:
        _refuse(url, f"names a host that is not allowed; use one of: {', '.join(sorted(allowed_hosts))}")
    owner, _, repository = path.partition("/")
    repository = repository.removesuffix(".git")
    if not _OWNER.fullmatch(owner) or not _REPOSITORY.fullmatch(repository):
        _refuse(url, f"must have the form https://{host}/<owner>/<repository>")
    if ".." in repository or repository == ".":
        _refuse(url, "must not hold '..' or name the repository '.'")
    return f"https://{host}/{owner}/{repository}"


def check_commit_hash(text: str) -> CommitHash:
    """Check that a text is a full commit hash: exactly 40 lower-case hex digits.

    A short prefix can be ground later, and a branch can look like one.

    Raises:
        InvalidForkUrl: it is not; the text names the field and the value.
    """
    if not _COMMIT_HASH.fullmatch(text):
        raise InvalidForkUrl(
            f"commit_hash {_shown(text)} is not a full commit hash; give exactly 40 lower-case hex digits"
        )
    return CommitHash(text)


def _check_file_url(url: str, path: str, allow_file: bool) -> str:
    if not allow_file:
        _refuse(url, "must start with https://; file:// is allowed on the local chain only")
    if not _FILE_PATH.fullmatch(path) or "/../" in f"{path}/" or "/./" in f"{path}/":
        _refuse(url, "must name an absolute, plain path: file:///<folder>/<repository>")
    return url


def _refuse(url: str, reason: str) -> NoReturn:
    raise InvalidForkUrl(f"fork_url {_shown(url)} {reason}")


def _shown(value: str) -> str:
    text = _USER_INFO.sub("//***@", value)
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}...")
