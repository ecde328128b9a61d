"""One devnet from an empty folder to weights on the chain."""

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from node.devices import resolve_device
from node.locks import FileLock
from node.processes import module_argv, worker_environment
from node.sandbox import detect_tier
from node.sandbox_spec import SandboxTier
from protocol.errors import ApiUnavailable, ChainUnavailable, DevnetFailed
from protocol.verdicts import LogitOutcome, Status
from roles.devnet.layout import MARKER, Layout, Member, Scale, prepare, require_devnet_folder
from roles.devnet.observer import Observer, Snapshot, Standing
from roles.devnet.processes import Processes, log_tail
from roles.devnet.report import Screen, document, table

LOOK_EVERY_S: Final = 0.5
MODEL_TIMEOUT_S: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    root: Path
    short: bool
    keep: bool
    as_json: bool
    device: str
    deadline_s: float


async def run_devnet(options: Options) -> None:
    """Run the subnet until the chain pays what the ranking says, then print the result.

    With `keep` it stays up until it is cancelled. Whatever happens, no process is left behind.

    Raises UsageError (the folder holds something else), ConfigError (no such GPU), DeviceBusy (another devnet
    runs in the folder), DevnetFailed (a process ended, a verdict is not the expected one, or time is up).
    """
    started_s = time.monotonic()
    device = resolve_device(options.device)
    require_devnet_folder(options.root)
    with FileLock(options.root / MARKER, f"devnet folder {options.root}"):
        is_sandboxed = await asyncio.to_thread(detect_tier) is not SandboxTier.NONE
        scale = Scale.short() if options.short else Scale.full()
        layout = await asyncio.to_thread(
            prepare, options.root, scale=scale, device=device, is_sandboxed=is_sandboxed
        )
        with Screen(Console(stderr=True)) as screen:
            screen.say(f"devnet in {layout.root}, device {device}, blocks of {scale.block_time_s} s")
            if not is_sandboxed:
                screen.say(
                    "this host offers no sandbox (Debian: apt-get install bubblewrap): submissions run "
                    "unsandboxed, which only the local chain allows"
                )
            await _run(options, layout, screen, started_s)


async def _run(options: Options, layout: Layout, screen: Screen, started_s: float) -> None:
    processes = Processes()
    observer = Observer.open(layout)
    settled = False
    try:
        await _start(layout, processes, screen)
        while True:
            processes.check()
            snapshot = await _look(observer, processes)
            screen.show(snapshot)
            if not settled:
                for standing in snapshot.standings:
                    _check(standing, layout)
                seconds = time.monotonic() - started_s
                if snapshot.is_settled:
                    settled = True
                    _print_result(options, snapshot, layout, seconds)
                elif seconds > options.deadline_s:
                    raise DevnetFailed(_time_is_up(options.deadline_s, snapshot, layout))
            if settled and not options.keep:
                return
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        await observer.close()
        await processes.stop()


async def _start(layout: Layout, processes: Processes, screen: Screen) -> None:
    """Start everybody; the model is written first, because all but the API want it."""
    await _start_one(layout.api, processes, screen)
    await _write_model(layout)
    for member in (layout.validator, *layout.miners):
        await _start_one(member, processes, screen)
    screen.say(f"API at {layout.api_url}")


async def _start_one(member: Member, processes: Processes, screen: Screen) -> None:
    process = await processes.start(member)
    screen.say(f"{member.name} started as process {process.pid}, log in {member.log_file}")


async def _write_model(layout: Layout) -> None:
    process = await asyncio.create_subprocess_exec(
        *module_argv("roles.inference.tiny_model", str(layout.model)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=worker_environment(),
    )
    try:
        async with asyncio.timeout(MODEL_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise DevnetFailed(f"the tiny model could not be written: {output.decode(errors='replace')[-2000:]}")


async def _look(observer: Observer, processes: Processes) -> Snapshot:
    """One snapshot; when the API does not answer, a process that has ended is the better explanation."""
    try:
        return await observer.look()
    except (ApiUnavailable, ChainUnavailable):
        processes.check()
        raise


def _check(standing: Standing, layout: Layout) -> None:
    """Raise DevnetFailed for an outcome that waiting does not mend."""
    miner, submission, verdict = standing.miner, standing.submission, standing.verdict
    if submission is None:
        return
    if submission.state == "expired":
        raise DevnetFailed(f"the commitment of {miner.name} expired:\n{log_tail(miner)}")
    if verdict is None:
        return
    expected = Status.WRONG_OUTPUT if miner == layout.wrong else Status.PASSED
    if verdict.status is not expected:
        raise DevnetFailed(
            f"the verdict on {miner.name} is {verdict.status}, and {expected} was expected: "
            f"{verdict.evidence.get('reason', '')}; see {layout.validator.log_file}"
        )
    if expected is Status.PASSED and submission.logit_outcome is LogitOutcome.FAILED:
        raise DevnetFailed(f"the logit verification of {miner.name} failed:\n{log_tail(layout.validator)}")


def _print_result(options: Options, snapshot: Snapshot, layout: Layout, seconds: float) -> None:
    if options.as_json:
        print(json.dumps(document(snapshot, layout, seconds), indent=2), flush=True)
        return
    console = Console(file=sys.stdout)
    console.print(table(snapshot))
    paid = ", ".join(
        f"{standing.miner.name} {standing.weight:.4f}" for standing in snapshot.standings if standing.weight
    )
    console.print(f"weights on the chain: {paid}", highlight=False)
    console.print(f"API: {layout.api_url}   ({seconds:.0f} s)", highlight=False)
    if options.keep:
        console.print("the subnet stays up; Ctrl-C ends it", highlight=False)


def _time_is_up(deadline_s: float, snapshot: Snapshot, layout: Layout) -> str:
    stands = "; ".join(f"{one.miner.name}: {one.text(snapshot.height)}" for one in snapshot.standings)
    return (
        f"the subnet did not settle within {deadline_s:.0f} s (--timeout): {stands}; "
        f"the end of {layout.validator.log_file}:\n{log_tail(layout.validator)}"
    )
