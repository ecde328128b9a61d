"""The processes of a devnet: each a `quasar-node --role ...` of its own, ended with the devnet."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Iterable
from typing import Final

from node.processes import kill_group, module_argv, worker_environment
from node.worker_main import PARENT_VARIABLE
from node.workers import describe_exit
from protocol.errors import DevnetFailed
from roles.devnet.layout import Member

STOP_PATIENCE_S: Final = 20.0
"""Above the drain of every role."""
LOG_TAIL_LINES: Final = 30
LOG_TAIL_BYTES: Final = 16_384


class Processes:
    """Starts members, notices when one has ended, and stops them all."""

    def __init__(self) -> None:
        self._running: dict[Member, Process] = {}

    async def start(self, member: Member) -> Process:
        """Start a member with nothing but its own settings file: the user's .env is not its business."""
        with member.log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *module_argv("roles", "--role", member.role, "--config", str(member.config_file)),
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                cwd=member.folder,
                # The variable makes it end with this process, however that ends.
                env={**worker_environment(), PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        self._running[member] = process
        return process

    def forget(self, member: Member) -> Process:
        """Hand a member's process to the caller: its end is no failure any more."""
        return self._running.pop(member)

    def check(self) -> None:
        """Raise DevnetFailed when a member has ended by itself."""
        for member, process in self._running.items():
            if process.returncode is not None:
                raise DevnetFailed(
                    f"{member.name} {describe_exit(process.returncode)}; the end of {member.log_file}:\n"
                    f"{log_tail(member)}"
                )

    async def stop(self) -> None:
        """End every member: the API last, because the others talk to it; whoever hangs is killed."""
        members = list(self._running)
        await self._end(member for member in members if member.role != "api")
        await self._end(member for member in members if member.role == "api")

    async def _end(self, members: Iterable[Member]) -> None:
        ending = [self._running.pop(member) for member in members]
        for process in ending:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_PATIENCE_S):
                await asyncio.gather(*(process.wait() for process in ending))
        except TimeoutError:
            pass
        finally:
            for process in ending:
                kill_group(process)


def log_tail(member: Member) -> str:
    """The last lines that a member printed."""
    try:
        with member.log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "(it has printed nothing)"
    return "\n".join(lines[-LOG_TAIL_LINES:])
