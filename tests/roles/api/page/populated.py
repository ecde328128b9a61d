"""A subnet with something to see: miners of different speed, and a submission in every state of its path."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.chain.local import LocalChain
from node.settings_model import ApiSection, ChainSection, NodeSection, Settings, WalletSection
from protocol.commitments import bound_commitment_hash
from protocol.messages import LeaseAnswer
from protocol.verdicts import Fault, LogitOutcome, Status
from tests.roles.api.harness import (
    Client,
    Code,
    Key,
    Subnet,
    commit_message,
    key,
    registration,
    reveal_message,
    submit_message,
)

BLOCK_TIME_S = 3600.0
"""Blocks come only when a test asks for them."""
HOSTILE = '"><script>alert(1)</script>\u202e'
"""What a miner would like to put into somebody's browser."""


@dataclass(frozen=True)
class Entry:
    """A miner with one judged submission."""

    name: str
    target: int
    tokens_per_sec: float
    cosine_similarity: float
    relative_error: float


ENTRIES = (
    Entry("orion", 1_000_000, 431_200_000.0, 0.999992, 4.4e-3),
    Entry("lyra", 1_000_000, 392_750_000.0, 0.999994, 4.1e-3),
    Entry("vela", 1_000_000, 391_900_000.0, 0.999994, 4.1e-3),
    Entry("draco", 800_000, 404_600_000.0, 0.999990, 4.6e-3),
    Entry("cygnus", 1_000_000, 214_300_000.0, 0.999991, 4.5e-3),
    Entry("carina", 500_000, 388_100_000.0, 0.999993, 4.2e-3),
    Entry("pavo", 300_000, 371_450_000.0, 0.999993, 4.1e-3),
    Entry("fornax", 1_000_000, 61_870_000.0, 0.999878, 9.8e-3),
    Entry("hydra", 100_000, 331_020_000.0, 0.999995, 4.0e-3),
    Entry("lupus", 262_144, 96_300_000.0, 0.999981, 5.2e-3),
)
FAILING = (
    ("corvus", Status.WRONG_OUTPUT, Fault.MINER),
    ("musca", Status.BELOW_CLAIM, Fault.MINER),
    ("norma", Status.DUPLICATE, Fault.NOBODY),
)
OTHERS = ("aquila", "cetus", "crux", "gemini")
"""Passed without a logit check; revealed; being judged; committed."""
MINERS = tuple(entry.name for entry in ENTRIES) + tuple(name for name, _, _ in FAILING) + OTHERS


def found_subnet(folder: Path, *, block_time_s: float) -> Subnet:
    """A chain with a validator and all of the miners."""
    path = folder / "chain.sqlite"
    chain = LocalChain.create(
        path,
        block_time_s=block_time_s,
        netuid=24,
        owner_hotkey=None,
        neurons=[
            registration("validator", "cold-v", 5000.0, permit=True),
            *(registration(name, f"cold-{name}") for name in MINERS),
        ],
    )
    return Subnet(folder, chain)


def page_settings(subnet: Subnet) -> Settings:
    """Settings of an API on that subnet, all files in the subnet's folder."""
    return Settings(
        node=NodeSection(data_dir=subnet.path / "data", drain_s=10.0),
        chain=ChainSection(network="local", local_state=subnet.path / "chain.sqlite", call_timeout_s=5.0),
        wallet=WalletSection(path=subnet.path / "wallets"),
        api=ApiSection(
            port=0,
            metagraph_max_age_s=0.5,
            # The evaluation that is under way stays so, however long the tests take.
            lease_s=86_400.0,
            writes_per_minute_per_ip=10_000,
            writes_per_minute_per_hotkey=1000,
        ),
    )


async def populate(api: Client, subnet: Subnet) -> None:
    """Bring every miner's submission to where it is to be seen, over HTTP as in life."""
    for entry in ENTRIES:
        await judged(
            api,
            subnet,
            key(entry.name),
            target=entry.target,
            measured_tokens_per_sec=entry.tokens_per_sec,
            cosine_similarity=entry.cosine_similarity,
            relative_error=entry.relative_error,
            spread=0.004,
            gpu="NVIDIA H200",
            vram_mb=4175.0,
            evidence={"reason": "every output agrees with the reference", "seeds": [11, 12, 13]},
        )
        await api.check_logits(subnet.validator, key(entry.name), LogitOutcome.PASSED)
    for name, status, fault in FAILING:
        figures: dict[str, Any] = {"status": status, "fault": fault, "measured_tokens_per_sec": None}
        await judged(api, subnet, key(name), gpu="NVIDIA H200", evidence={"log_tail": HOSTILE}, **figures)
    unchecked, queued, in_work, committed = (key(name) for name in OTHERS)
    second = await judged(api, subnet, unchecked, measured_tokens_per_sec=402_000_000.0, gpu="NVIDIA H200")
    lyra = 2
    reply = await api.compare(subnet.validator, second.submission_id, lyra, ratio=1.0236, gpu="NVIDIA H200")
    assert reply.status == 200, reply
    await committed_code(api, committed, "old")
    subnet.chain.advance(37)
    await committed_code(api, committed, "new")
    subnet.chain.advance(63)
    await direct(api, in_work, 1_000_000)
    assert await api.lease(subnet.validator) is not None
    await direct(api, queued, 500_000)


async def judged(
    api: Client, subnet: Subnet, miner: Key, *, target: int = 1_000_000, **figures: Any
) -> LeaseAnswer:
    """Commit, wait, reveal and judge one submission of a miner."""
    claim = 0.95 * (figures.get("measured_tokens_per_sec") or 400_000_000.0)
    code = Code(f"{miner.ss58_address}-{target}", tokens_per_sec=claim, owner="miner-of-kernels")
    submission_id = await committed_code(api, miner, code.name, target)
    subnet.chain.advance(100)
    reply = await api.post("/reveal_submission", reveal_message(miner, submission_id, code))
    assert reply.status == 200, reply
    lease = await api.lease(subnet.validator)
    assert lease is not None
    assert lease.submission_id == submission_id
    reply = await api.judge(subnet.validator, lease, **figures)
    assert reply.status == 200, reply
    return lease


async def committed_code(api: Client, miner: Key, name: str, target: int = 1_000_000) -> int:
    """A bound commitment; returns the submission's number."""
    code = Code(name, owner="miner-of-kernels")
    digest = bound_commitment_hash(code.salt, miner.ss58_address, target, code.url, code.commit_hash)
    reply = await api.post("/commit_submission", commit_message(miner, digest, target))
    assert reply.status == 200, reply
    return int(reply.body["submission_id"])


async def direct(api: Client, miner: Key, target: int) -> None:
    """A submission without a commitment."""
    code = Code(f"{miner.ss58_address}-direct", owner="miner-of-kernels")
    reply = await api.post("/submit_kernel", submit_message(miner, code, target))
    assert reply.status == 200, reply
