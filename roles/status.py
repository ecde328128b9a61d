"""What a node says about itself: one JSON file that `quasar-node status` shows, and a log line per fact."""

import asyncio
import dataclasses
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from node.bus import Bus
from node.clock import Clock
from node.logs import get_logger
from node.metrics import Metrics
from protocol.events import BlockAdvanced, Event

STATUS_FILE: Final = "status.json"
SHOWN: Final = 20
"""Of what only grows, the file has so many of the newest."""
LOOK_EVERY_S: Final = 1.0
LONGEST_SILENCE_S: Final = 10.0
"""An unchanged status is written again this often: a reader sees that the node lives."""

Section = Callable[[], Awaitable[Any]]
"""Gives one part of the status as plain JSON data."""

_log = get_logger(__name__)


class StatusKeeper:
    """Component that logs the node's events and keeps `status.json` about a second behind them.

    `facts`: events of which the latest is shown, each under its own name. `sections`: parts that are asked
    for at every second. Blocks are shown as the height, in the metrics too, and not logged.
    """

    name = "status"

    def __init__(
        self,
        *,
        role: str,
        hotkey: str,
        data_dir: Path,
        bus: Bus,
        clock: Clock,
        metrics: Metrics,
        facts: tuple[type[Event], ...],
        sections: Mapping[str, Section],
    ) -> None:
        self._path = data_dir / STATUS_FILE
        self._clock = clock
        self._metrics = metrics
        self._sections = sections
        self._events = bus.subscribe(BlockAdvanced, *facts)
        self._status: dict[str, Any] = {"role": role, "hotkey": hotkey, "pid": os.getpid(), "height": None}
        self._status |= {_name(fact): None for fact in facts}
        self._written: dict[str, Any] = {}
        self._written_at_s = float("-inf")
        self._is_failing = False

    async def run(self) -> None:
        """Note events and write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._note_events(), name="status events")
            while True:
                await self._write()
                await self._clock.sleep(LOOK_EVERY_S)

    async def _note_events(self) -> None:
        async for event in self._events:
            if isinstance(event, BlockAdvanced):
                self._status["height"] = event.height
                self._metrics.block_height.set(event.height)
                continue
            told = json.loads(json.dumps(dataclasses.asdict(event)))
            self._status[_name(type(event))] = told | {"at": self._clock.now().isoformat()}
            _log.info(_name(type(event)).replace("_", " "), **told)

    async def _write(self) -> None:
        status = self._status | {name: await section() for name, section in self._sections.items()}
        now_s = self._clock.monotonic()
        if status == self._written and now_s - self._written_at_s < LONGEST_SILENCE_S:
            return
        told = status | {"written_at": self._clock.now().isoformat()}
        try:
            await asyncio.to_thread(write_atomically, self._path, json.dumps(told, indent=2))
        except OSError as error:
            # Nothing depends on it: a disk that is full for a while must not end the node.
            if not self._is_failing:
                _log.error("the status cannot be written, it is tried again every second", reason=str(error))
            self._is_failing = True
            return
        self._written, self._written_at_s, self._is_failing = status, now_s, False


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old text or the new one, never a part."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def _name(fact: type[Event]) -> str:
    """`CommitmentRecorded` -> `commitment_recorded`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in fact.__name__).lstrip(
        "_"
    )
