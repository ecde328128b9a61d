"""What lies where: the folder of a devnet, its members, and the settings file of each."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import tomli_w

from node.chain.local import LocalChain, Registration
from node.git import create_bare_repository
from node.ports import free_port
from node.wallets import create_wallet
from protocol.errors import UsageError
from protocol.types import Coldkey, Hotkey
from roles.devnet.wrong_kernel import wrong_files

MARKER: Final = "devnet.lock"
"""Tells a devnet's folder from any other, and is locked while one runs in it."""
NETUID: Final = 24
TARGET_LENGTH: Final = 100_000
LONGEST_RUN_LENGTH: Final = 16_384
"""T that is really run on a GPU; the CPU profile has a shorter one of its own."""
VALIDATOR_STAKE_TAO: Final = 10_000.0
CLAIM_FRACTION: Final = 0.2
"""Everything shares the cores of one machine: a validator may well measure a quarter of what a miner did."""
REVEAL_WINDOW_BLOCKS: Final = 3000
"""Minutes instead of an hour on these fast blocks, for a machine that is busy."""
WEIGHTS_RATE_LIMIT_BLOCKS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How fast the chain runs and how often a kernel is timed."""

    block_time_s: float
    trials: int

    @classmethod
    def full(cls) -> Self:
        """The usual devnet."""
        return cls(block_time_s=0.25, trials=6)

    @classmethod
    def short(cls) -> Self:
        """What CI runs."""
        return cls(block_time_s=0.1, trials=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One process of the subnet, with a folder and a hotkey of its own."""

    name: str
    role: str
    folder: Path
    hotkey: Hotkey
    coldkey: Coldkey
    """One each: the members are strangers to each other."""

    @property
    def config_file(self) -> Path:
        """The settings that it starts with."""
        return self.folder / "config.toml"

    @property
    def log_file(self) -> Path:
        """What it prints."""
        return self.folder / "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A prepared devnet."""

    root: Path
    api_url: str
    api: Member
    validator: Member
    fast: Member
    slow: Member
    wrong: Member

    @property
    def miners(self) -> tuple[Member, ...]:
        """The three miners."""
        return (self.fast, self.slow, self.wrong)

    @property
    def chain_file(self) -> Path:
        """The chain that all processes share."""
        return self.root / "chain.sqlite"

    @property
    def model(self) -> Path:
        """Folder of the tiny model that stands in for the reference."""
        return self.root / "model"


def require_devnet_folder(root: Path) -> None:
    """Raise UsageError when `root` is something else than a devnet's folder, an empty one, or none."""
    if not root.exists():
        return
    if not root.is_dir():
        raise UsageError(f"--dir {root}: is a file; name a folder that the devnet may make anew")
    if any(root.iterdir()) and not (root / MARKER).is_file():
        raise UsageError(
            f"--dir {root}: holds files that no devnet made, and a devnet empties its folder: name another"
        )


def prepare(root: Path, *, scale: Scale, device: str, is_sandboxed: bool = True) -> Layout:
    """Make the folder anew: chain, wallets, remotes, kernels and a settings file for each process.

    Raises UsageError when the folder holds anything that no devnet has made.
    """
    require_devnet_folder(root)
    root = root.absolute()
    _empty(root)
    api, validator, fast, slow, wrong = _members(root)
    layout = Layout(
        root=root,
        api_url=f"http://127.0.0.1:{free_port()}",
        api=api,
        validator=validator,
        fast=fast,
        slow=slow,
        wrong=wrong,
    )
    for miner in layout.miners:
        create_bare_repository(_remote(layout, miner))
    candidate = wrong.folder / "candidate"
    candidate.mkdir()
    for name, text in wrong_files().items():
        (candidate / name).write_text(text, encoding="utf-8")
    own = {
        fast: {"proposer": "shipped", "variants": ["chunk"]},
        slow: {"proposer": "shipped", "variants": ["recurrent"]},
        # It measures itself like the others, and submits all the same.
        wrong: {"proposer": "files", "kernel_dir": str(candidate), "verify_before_submit": False},
    }
    for member in (api, validator, *layout.miners):
        config = _config(layout, member, scale, device)
        config["validator"]["unsafe_no_sandbox"] = not is_sandboxed
        config["miner"] |= own.get(member, {})
        member.config_file.write_text(tomli_w.dumps(config), encoding="utf-8")
    _found_chain(layout, scale)
    return layout


def _empty(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()


def _members(root: Path) -> list[Member]:
    roles = {"api": "api", "validator": "validator", "fast": "miner", "slow": "miner", "wrong": "miner"}
    members = []
    for name, role in roles.items():
        wallet = create_wallet(root / "wallets", name)
        member = Member(
            name=name,
            role=role,
            folder=root / name,
            hotkey=Hotkey(str(wallet.hotkey.ss58_address)),
            coldkey=Coldkey(str(wallet.coldkeypub.ss58_address)),
        )
        member.folder.mkdir()
        members.append(member)
    return members


def _found_chain(layout: Layout, scale: Scale) -> None:
    """Genesis is now: last, so that no block passes before anybody could see it."""
    validator = layout.validator
    LocalChain.create(
        layout.chain_file,
        block_time_s=scale.block_time_s,
        netuid=NETUID,
        owner_hotkey=None,
        neurons=[
            Registration(validator.hotkey, validator.coldkey, VALIDATOR_STAKE_TAO, validator_permit=True),
            *(Registration(miner.hotkey, miner.coldkey) for miner in layout.miners),
        ],
        weights_rate_limit=WEIGHTS_RATE_LIMIT_BLOCKS,
    ).close()


def _config(layout: Layout, member: Member, scale: Scale, device: str) -> dict[str, dict[str, Any]]:
    """The settings of one process; tables that its role does not read do no harm."""
    port = int(layout.api_url.rpartition(":")[2])
    common: Mapping[str, dict[str, Any]] = {
        "node": {
            "data_dir": str(member.folder / "data"),
            "log_format": "console",
            "device": device,
            "metrics_port": 0,
        },
        "chain": {"network": "local", "local_state": str(layout.chain_file), "netuid": NETUID},
        "wallet": {"path": str(layout.root / "wallets"), "name": member.name},
        "api": {
            "url": layout.api_url,
            "port": port,
            "metagraph_max_age_s": 1.0,
            "heartbeat_s": 5.0,
            "infrastructure_retry_s": 5.0,
            "reveal_window_blocks": REVEAL_WINDOW_BLOCKS,
        },
        "miner": {
            "target_sequence_length": TARGET_LENGTH,
            "agent_iterations": 1,
            "claim_fraction": CLAIM_FRACTION,
            "fork_remote": _remote(layout, member).as_uri(),
            "poll_s": 0.5,
            # Three miners, one GPU at most.
            "share_gpu": True,
        },
        "inference": {"host": "127.0.0.1", "port": 0, "reference_model": str(layout.model)},
        "validator": {"poll_s": 0.5, "logit_interval_s": 40.0, "infrastructure_pause_s": 1.0},
        "evaluation": {
            "trials_min": scale.trials,
            "trials_max": scale.trials,
            "max_sequence_length": LONGEST_RUN_LENGTH,
        },
    }
    return {section: dict(values) for section, values in common.items()}


def _remote(layout: Layout, miner: Member) -> Path:
    return layout.root / "remotes" / f"{miner.name}.git"
