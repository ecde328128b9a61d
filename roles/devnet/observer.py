"""What a devnet looks like from outside: the API as everybody sees it, the weights as the chain has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from node.chain import Chain, open_chain
from node.clock import SystemClock
from node.http_client import HttpClient
from node.settings_model import ChainSection
from protocol.messages import Leaderboard, LeaderboardRow, StoredVerdict, SubmissionDetail
from protocol.rules import REWARD_SHARES
from protocol.types import BlockHeight, Hotkey
from protocol.verdicts import LogitOutcome, Status
from roles.devnet.layout import NETUID, Layout, Member

SAME_SHARE = 1e-3
"""The chain keeps weights in 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One miner: its submission, None before the commitment, and what the chain pays it."""

    miner: Member
    submission: SubmissionDetail | None
    weight: float

    @property
    def verdict(self) -> StoredVerdict | None:
        """The validator's last word, None before it."""
        if self.submission is None or self.submission.state != "judged":
            return None
        return self.submission.verdicts[-1]

    def text(self, height: BlockHeight) -> str:
        """Where the miner stands, for people."""
        submission, verdict = self.submission, self.verdict
        if submission is None:
            return "measures its kernel"
        if submission.state == "committed" and submission.reveal_block is not None:
            left = submission.reveal_block - height
            return f"committed, reveal in {left} blocks" if left > 0 else "pushes and reveals"
        if verdict is None:
            return {"queued": "revealed, waits for a validator", "evaluating": "is being judged"}.get(
                submission.state, submission.state
            )
        if verdict.status is Status.PASSED:
            return f"passed, logits {submission.logit_outcome.value}"
        return verdict.status.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole subnet at one moment."""

    height: BlockHeight
    standings: tuple[Standing, ...]
    ranking: tuple[LeaderboardRow, ...]
    weights: Mapping[Hotkey, float]
    """Read from the chain; they sum to 1, or there are none."""

    @property
    def is_settled(self) -> bool:
        """True when everybody is judged and the chain pays exactly what the ranking says."""
        ranked = {row.miner_hotkey for row in self.ranking}
        for standing in self.standings:
            verdict = standing.verdict
            if verdict is None or standing.submission is None:
                return False
            is_passed = verdict.status is Status.PASSED
            logits = standing.submission.logit_outcome
            if is_passed and logits is LogitOutcome.PENDING:
                return False
            if is_passed and logits is LogitOutcome.PASSED and standing.miner.hotkey not in ranked:
                # It passed after the ranking was read.
                return False
        shares = dict(zip((row.miner_hotkey for row in self.ranking), REWARD_SHARES, strict=False))
        total = sum(shares.values())
        return bool(shares) and all(
            abs(self.weights.get(Hotkey(hotkey), 0.0) - share / total) <= SAME_SHARE
            for hotkey, share in shares.items()
        )


class Observer:
    """Reads the API without a hotkey and the chain without a wallet; `close` it at the end."""

    def __init__(self, layout: Layout, http: HttpClient, chain: Chain) -> None:
        self._layout = layout
        self._http = http
        self._chain = chain

    @classmethod
    def open(cls, layout: Layout) -> Self:
        """Connects at the first look."""
        clock = SystemClock()
        section = ChainSection(network="local", local_state=layout.chain_file, netuid=NETUID)
        return cls(layout, HttpClient(base_url=layout.api_url, clock=clock), open_chain(section, clock))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()
        await self._chain.close()

    async def look(self) -> Snapshot:
        """Read everything once. Raises ApiUnavailable, ChainUnavailable."""
        board = await self._http.request("GET", "/leaderboard", answer=Leaderboard)
        weights = await self._chain.weights_of(self._layout.validator.hotkey)
        standings = [
            Standing(
                miner=miner, submission=await self._submission(miner), weight=weights.get(miner.hotkey, 0.0)
            )
            for miner in self._layout.miners
        ]
        return Snapshot(
            height=await self._chain.height(),
            standings=tuple(standings),
            ranking=tuple(board.rows),
            weights=weights,
        )

    async def _submission(self, miner: Member) -> SubmissionDetail | None:
        """The miner's newest submission."""
        found = await self._http.request(
            "GET",
            "/submissions",
            params={"hotkey": miner.hotkey, "limit": 1},
            answer=list[SubmissionDetail],
        )
        return found[0] if found else None
