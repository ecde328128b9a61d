"""The one error tree: every message says what was wrong, with the value, and what to do.

Each class carries the exit code with which a process ends when the error reaches the runtime's edge
(sysexits: 69 unavailable, 70 bug, 75 temporary, 77 no permission, 78 configuration).
"""

from typing import ClassVar


class QuasarError(Exception):
    """Something that the product foresaw; its text is one sentence fit for an operator."""

    exit_code: ClassVar[int] = 70


class UsageError(QuasarError):
    """The command line makes no sense."""

    exit_code = 2


class ConfigError(QuasarError):
    """A setting, a file named by a setting, or a wallet is wrong."""

    exit_code = 78


class DeviceMissing(ConfigError):
    """A GPU that this machine does not have, or no longer; `device` is what it would be called."""

    def __init__(self, device: str, sentence: str) -> None:
        super().__init__(sentence)
        self.device = device


class WalletError(ConfigError):
    """The wallet cannot be used: missing, unreadable or watch-only."""


class NotPermitted(QuasarError):
    """The hotkey is not registered, or lacks the validator permit or the stake that an act needs."""

    exit_code = 77


class Unavailable(QuasarError):
    """A service that the node needs could not be reached before the deadline."""

    exit_code = 69


class ChainUnavailable(Unavailable):
    """The chain did not answer."""


class ApiUnavailable(Unavailable):
    """The subnet API did not answer."""


class PortInUse(Unavailable):
    """The address that a server was told to listen on is taken."""


class Temporary(QuasarError):
    """A condition that a restart may cure."""

    exit_code = 75


class DeviceBusy(Temporary):
    """Another process holds the lock on a device, a journal or a data directory."""


class WorkerFailed(Temporary):
    """A child process crashed, hung or broke its protocol."""


class WorkerRefused(QuasarError):
    """A child process answered that it cannot do what was asked; it lives on. The text is its own."""


class JournalError(QuasarError):
    """The journal's file cannot be used, or has no record where one must be."""

    exit_code = 75


class ChainRejected(QuasarError):
    """The chain answered and refused the extrinsic."""

    exit_code = 75


class ApiRefused(QuasarError):
    """The subnet API answered with a refusal; `status` is the HTTP status, the text its detail."""

    exit_code = 75

    def __init__(self, status: int, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after_s = retry_after_s


class InvalidMessage(QuasarError):
    """Data from outside does not follow the protocol; names the field and the value."""


class SignatureInvalid(InvalidMessage):
    """A signature does not belong to the hotkey or to the text."""


class InvalidForkUrl(InvalidMessage):
    """A fork URL or commit hash that the rules do not allow."""


class SourceRejected(QuasarError):
    """A repository that could not be fetched, or does not hold a submission."""


class SourceUnavailable(SourceRejected):
    """Nothing was learned about a repository: its server is away, fails or is slow, or this host fails."""


class ExportFailed(QuasarError):
    """Exported kernel files do not run, or do not agree with the reference."""


class SandboxUnavailable(QuasarError):
    """This host offers no isolation good enough to run a submission."""

    exit_code = 69


class CgroupUnavailable(SandboxUnavailable):
    """This process can limit no sandbox as a whole; `fix` says what to do about it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}: {fix}")
        self.reason = reason
        self.fix = fix


class BusError(QuasarError):
    """An event that nobody consumes, or whose consumers stopped reading."""


class ComponentReturned(QuasarError):
    """A component that should run for ever came to an end."""


class DevnetFailed(QuasarError):
    """The subnet on this machine did not come to the end that it should."""
