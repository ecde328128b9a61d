"""The sequence length that the miner competes at: as configured, or where this machine earns most."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from kernels.export import export_files
from node.clock import Clock
from node.devices import device_name
from node.logs import get_logger
from node.settings_model import Settings
from protocol.errors import Temporary
from protocol.leagues import LEAGUES, league_of, weighted_score
from protocol.verdicts import Status
from roles.backoff import Backoff
from roles.miner.candidate import Candidate
from roles.miner.history import History
from roles.miner.measuring import Measuring, reason_of

FACT: Final = "leagues"
"""What the history remembers the measurements under."""
LENGTHS: Final = (100_000, *sorted(shortest for shortest, _ in LEAGUES if shortest > 1))
"""Where each league is measured: at its shortest length, the first at the usual one."""
LONGEST_WAIT_S: Final = 300.0

_log = get_logger(__name__)


class Target:
    """The target length, known from the start or once it was chosen."""

    def __init__(self, length: int | None = None) -> None:
        self._length = length
        self._is_known = asyncio.Event()
        if length is not None:
            self._is_known.set()

    @property
    def length(self) -> int | None:
        """The length; None before it was chosen."""
        return self._length

    def set(self, length: int) -> None:
        """Settle on a length."""
        self._length = length
        self._is_known.set()

    async def known(self) -> int:
        """The length, waited for."""
        await self._is_known.wait()
        assert self._length is not None
        return self._length


class TargetChooser:
    """Measures one kernel at a length of every league and takes where its weighted score is highest.

    Every measurement is the referee's, memory and all; each is written down as it comes, so that a restart
    repeats none. Another machine or another kernel starts anew.
    """

    def __init__(
        self,
        measuring: Measuring,
        history: History,
        clock: Clock,
        *,
        files: Mapping[str, str],
        machine: str,
        default: int,
    ) -> None:
        self._measuring = measuring
        self._history = history
        self._clock = clock
        self._files = files
        self._of = {"machine": machine, "digest": Candidate("", files).digest}
        self._default = default

    async def choose(self) -> int:
        """The target length; the configured one when the kernel passes at none."""
        known: dict[str, Any] = await self._history.fact(FACT) or {}
        if {name: known.get(name) for name in self._of} != self._of:
            known = self._of | {"leagues": {}}
        leagues: dict[str, Any] = known["leagues"]
        for length in LENGTHS:
            if str(length) not in leagues:
                measured = await self._measure(length)
                if measured["status"] == Status.INFRASTRUCTURE:
                    # The GPU may have more to give another time: this is not remembered.
                    break
                leagues[str(length)] = measured
                await self._history.remember(FACT, known)
            if leagues[str(length)]["status"] == Status.OUT_OF_MEMORY:
                # Longer ones need more.
                break
        scores = {int(length): one["score"] for length, one in leagues.items() if one["score"] is not None}
        if not scores:
            _log.warning("no league could be measured", target_sequence_length=self._default)
            return self._default
        best = max(scores, key=lambda length: scores[length])
        _log.info("league chosen", league=league_of(best).name, target_sequence_length=best, scores=scores)
        return best

    async def _measure(self, length: int) -> dict[str, Any]:
        """What the referee says; `infrastructure` when the GPU has too little memory for it to say more."""
        backoff = Backoff(self._clock, longest_s=LONGEST_WAIT_S)
        while True:
            figures = await self._measuring.measure(self._files, length)
            if figures.status is not Status.INFRASTRUCTURE or figures.is_short_of_memory:
                break
            await backoff.wait(Temporary(reason_of(figures)), target_sequence_length=length)
        speed = figures.measured_tokens_per_sec if figures.status is Status.PASSED else None
        score = None if speed is None else weighted_score(speed, length)
        _log.info(
            "league measured",
            league=league_of(length).name,
            status=figures.status.value,
            tokens_per_sec=speed,
            score=score,
        )
        return {"status": figures.status.value, "tokens_per_sec": speed, "score": score}


async def open_chooser(
    settings: Settings, device: str, measuring: Measuring, history: History, clock: Clock
) -> TargetChooser | None:
    """The chooser, with the shipped kernel as what is measured; None when the length is configured."""
    if not settings.miner.choose_league:
        return None
    return TargetChooser(
        measuring,
        history,
        clock,
        files=await asyncio.to_thread(export_files, "chunk"),
        machine=await asyncio.to_thread(device_name, device),
        default=settings.miner.target_sequence_length,
    )
