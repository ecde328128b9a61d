"""`quasar-node doctor`: what this host lacks for a role, each with the fix."""

import argparse
import asyncio
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
from rich.console import Console
from rich.table import Table

from node.settings import LoadedSettings
from node.settings_model import Settings
from protocol.errors import CgroupUnavailable, QuasarError

MIN_FREE_DISK_BYTES: Final = 20 * 2**30
MAX_CLOCK_SKEW_S: Final = 5.0
"""btauth/1 refuses requests that are further off."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    result: Literal["ok", "warning", "error"]
    detail: str
    fix: str = ""


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "doctor",
        parents=parents,
        help="check this host",
        description="Check this host and say how to mend it.",
    )
    parser.add_argument(
        "--for", dest="for_role", choices=("miner", "validator", "api", "inference"), default="miner"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Print the findings; 0 when nothing is an error, 78 otherwise."""
    findings = asyncio.run(examine(loaded.settings, args.for_role))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print_table(findings)
    return 78 if any(finding.result == "error" for finding in findings) else 0


async def examine(settings: Settings, role: str) -> list[Finding]:
    """Run every check that concerns `role`."""
    findings = [_python(), _platform(), _git(), _packages(), _disk(settings.node.data_dir)]
    if role in ("miner", "validator"):
        findings.append(await asyncio.to_thread(sandbox_finding, settings))
    if role in ("miner", "validator", "inference"):
        findings += [await asyncio.to_thread(_device, settings), _allocator()]
    if role == "validator" and settings.executor.backend != "local":
        findings.append(await executor_finding(settings))
    elif role == "validator" and settings.evaluation.devices:
        findings.append(await asyncio.to_thread(devices_finding, settings))
    if role in ("miner", "validator"):
        findings += [_wallet(settings, role), await _api(settings)]
    if role == "miner":
        findings.append(await _github(settings))
    if role != "inference" or settings.inference.require_auth is not False:
        findings.append(await _chain(settings))
    findings.append(_port(settings, role))
    return findings


def _print_table(findings: list[Finding]) -> None:
    table = Table("check", "result", "found", "fix")
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        table.add_row(
            finding.check, f"[{colours[finding.result]}]{finding.result}[/]", finding.detail, finding.fix
        )
    Console().print(table)


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _platform() -> Finding:
    if sys.platform != "linux":
        return Finding("platform", "error", sys.platform, "run the node on Linux")
    return Finding("platform", "ok", os.uname().release)


def _git() -> Finding:
    git = shutil.which("git")
    if git is None:
        return Finding("git", "error", "not found", "apt-get install git")
    return Finding(
        "git",
        "ok",
        subprocess.run([git, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
    )


def _packages() -> Finding:
    if any(dist.metadata["Name"] == "kernels" for dist in importlib.metadata.distributions()):
        return Finding(
            "packages",
            "error",
            "the PyPI package `kernels` is installed and shadows ours",
            "pip uninstall kernels",
        )
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "triton", "bittensor")
    )
    return Finding("packages", "ok", versions)


def _disk(data_dir: Path) -> Finding:
    existing = next(
        folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists()
    )
    free = shutil.disk_usage(existing).free
    detail = f"{free / 2**30:.0f} GiB free under {existing}"
    if free < MIN_FREE_DISK_BYTES:
        return Finding(
            "disk", "warning", detail, f"free {MIN_FREE_DISK_BYTES // 2**30} GiB for clones and caches"
        )
    return Finding("disk", "ok", detail)


def sandbox_finding(settings: Settings) -> Finding:
    """Which tier this process gets and, where there is a better one, what is in its way."""
    from node.cgroups import find_parent
    from node.sandbox import detect_tier
    from node.sandbox_spec import SandboxTier

    tier = detect_tier()
    better = "apt-get install bubblewrap" if shutil.which("bwrap") is None else _NAMESPACES_FIX
    if tier is SandboxTier.NONE:
        result: Literal["warning", "error"] = "warning" if settings.is_local_chain else "error"
        if os.geteuid() == 0:
            better += "; or, to verify kernels only, run this as another user than root"
        return Finding("sandbox", result, "no isolation available", better)
    if tier is SandboxTier.LANDLOCK:
        detail = f"tier {tier.value}: enough to verify kernels, too little for a validator's verdicts"
        return Finding("sandbox", "warning", detail, better)
    if tier is SandboxTier.CGROUP:
        return Finding("sandbox", "ok", f"tier {tier.value}")
    try:
        reason, fix = f"{find_parent()} is no use", "look at the kernel's log"
    except CgroupUnavailable as error:
        reason, fix = error.reason, error.fix
    detail = (
        f"tier {tier.value} from here: memory is limited for each process, not for a submission; {reason}"
    )
    return Finding("sandbox", "warning", detail, fix)


_NAMESPACES_FIX: Final = (
    "bubblewrap is there and does not start: allow user namespaces (sysctl "
    "kernel.unprivileged_userns_clone=1; "
    "on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; a container needs it on its host)"
)


def _device(settings: Settings) -> Finding:
    from node.devices import resolve_device

    try:
        device = resolve_device(settings.node.device)
    except QuasarError as error:
        return Finding(
            "device", "error", str(error), "install the NVIDIA driver, or set DEVICE=cpu for the local chain"
        )
    smi = shutil.which("nvidia-smi")
    if device == "cpu" or smi is None:
        return Finding("device", "ok", device)
    query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return Finding(
        "device", "ok", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    )


def devices_finding(settings: Settings) -> Finding:
    """Which GPUs of `[evaluation] devices` are there: without one of several the validator goes on."""
    from roles.places import places_of

    try:
        places = places_of(settings)
    except QuasarError as error:
        return Finding("devices", "error", str(error), "see [evaluation] devices in config.toml")
    missing = ", ".join(place.name for place in places if place.is_missing)
    if missing:
        fix = "look at nvidia-smi and dmesg; the validator asks again, and starts with the others"
        return Finding("devices", "warning", f"{missing}: not there", fix)
    return Finding("devices", "ok", ", ".join(place.name for place in places))


async def executor_finding(settings: Settings) -> Finding:
    """Have another host compute something."""
    from roles.evaluation import Referee
    from roles.places import places_of

    where = f"Ray at {settings.executor.address}"
    try:
        place = places_of(settings)[0]
    except QuasarError as error:
        return Finding("executor", "error", str(error), "see [executor] in config.toml")
    if await Referee(settings, settings.node.data_dir, place=place).is_device_working():
        return Finding("executor", "ok", f"{where}: a host computes on {place.device}")
    return Finding(
        "executor",
        "error",
        f"{where}: no host computes on {place.device}",
        "the log says what failed; `ray status` says what the cluster has",
    )


def _allocator() -> Finding:
    value = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    return Finding("CUDA memory", "ok", value or "expandable_segments:True is set for workers")


def _wallet(settings: Settings, role: str) -> Finding:
    from node.wallets import load_wallet

    name = settings.wallet.name or (
        settings.wallet.validator_name if role == "validator" else settings.wallet.miner_name
    )
    try:
        wallet = load_wallet(settings.wallet, name)
    except QuasarError as error:
        return Finding(
            "wallet", "error", str(error), "btcli wallet create, or set WALLET_MINER_NAME / WALLET_HOTKEY"
        )
    return Finding("wallet", "ok", f"{name}/{settings.wallet.hotkey}: {wallet.hotkey.ss58_address}")


async def _api(settings: Settings) -> Finding:
    url = settings.api.url.rstrip("/")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(f"{url}/health") as response,
        ):
            date = response.headers.get("Date")
            status = response.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return Finding(
            "api", "error", f"{url} does not answer: {error or type(error).__name__}", "set VALIDATOR_API_URL"
        )
    if status != 200:
        return Finding("api", "error", f"{url}/health answered {status}", "set VALIDATOR_API_URL")
    skew_s = abs((datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()) if date else 0.0
    if skew_s > MAX_CLOCK_SKEW_S:
        return Finding(
            "api", "error", f"{url} answers, but the clocks differ by {skew_s:.0f} s", "turn on NTP"
        )
    return Finding("api", "ok", f"{url} answers, clock skew below {MAX_CLOCK_SKEW_S:.0f} s")


async def _github(settings: Settings) -> Finding:
    from node.clock import SystemClock
    from roles.miner.fork import fork_url
    from roles.miner.github import GitHub

    own = settings.miner
    try:
        url = fork_url(settings)
        if own.fork_remote is None and own.github_token is not None and own.github_username is not None:
            await GitHub(own.github_api, own.github_token, SystemClock()).check_user(own.github_username)
    except QuasarError as error:
        return Finding("github", "error", str(error), "set GITHUB_USERNAME and GITHUB_TOKEN in .env")
    return Finding("github", "ok", f"the fork is {url}")


async def _chain(settings: Settings) -> Finding:
    from node.chain import open_chain
    from node.clock import SystemClock

    try:
        chain = open_chain(settings.chain, SystemClock())
        try:
            height = await chain.height()
            neurons = len((await chain.metagraph()).neurons)
        finally:
            await chain.close()
    except QuasarError as error:
        return Finding("chain", "error", str(error), "set SUBTENSOR_NETWORK, or [chain] fallback_endpoints")
    return Finding(
        "chain",
        "ok",
        f"{settings.chain.network}: block {height}, netuid {settings.chain.netuid}, {neurons} neurons",
    )


_PORTS: Final[dict[str, Callable[[Settings], tuple[str, int]]]] = {
    "miner": lambda settings: (settings.inference.host, settings.inference.port),
    "inference": lambda settings: (settings.inference.host, settings.inference.port),
    "validator": lambda settings: (settings.node.metrics_host, settings.node.metrics_port),
    "api": lambda settings: (settings.api.host, settings.api.port),
}


def _port(settings: Settings, role: str) -> Finding:
    host, port = _PORTS[role](settings)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            return Finding(
                "port",
                "warning",
                f"{host}:{port} cannot be bound: {error.strerror}",
                "stop what uses it, or choose another port",
            )
    return Finding("port", "ok", f"{host}:{port} is free")
