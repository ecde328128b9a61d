"""A devnet on the screen: a live table on a terminal, else a line for everything that changes."""

from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from roles.devnet.layout import Layout
from roles.devnet.observer import Snapshot


class Screen:
    """Shows snapshots; use it in a `with` statement."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line; above the table, where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, snapshot: Snapshot) -> None:
        """Show how things stand now."""
        if self._live is not None:
            self._live.update(table(snapshot), refresh=True)
            return
        for standing in snapshot.standings:
            # Every block would be another line otherwise.
            text = standing.text(snapshot.height).partition(", reveal in")[0]
            if text == "committed" and standing.submission is not None:
                text += f" at block {standing.submission.commit_block}"
            self._tell(snapshot, standing.miner.name, text)
        paid = ", ".join(f"{one.miner.name} {one.weight:.3f}" for one in snapshot.standings if one.weight)
        if paid:
            self._tell(snapshot, "weights", f"on the chain: {paid}")

    def _tell(self, snapshot: Snapshot, subject: str, text: str) -> None:
        if self._shown.get(subject) != text:
            self._shown[subject] = text
            self.say(f"block {snapshot.height:>5}  {subject:<8} {text}")


def table(snapshot: Snapshot) -> Table:
    """The subnet at one moment, one row for each miner; fits into 80 columns."""
    drawn = Table(title=f"QUASAR devnet, block {snapshot.height}", title_justify="left")
    drawn.add_column("miner")
    drawn.add_column("where it stands", min_width=26)
    for heading in ("claim", "measured", "rank", "weight"):
        drawn.add_column(heading, justify="right")
    drawn.caption = "claim and measured: tokens per second; weight: on the chain"
    for standing in snapshot.standings:
        submission, verdict = standing.submission, standing.verdict
        drawn.add_row(
            standing.miner.name,
            standing.text(snapshot.height),
            _number(submission and submission.claimed_tokens_per_sec),
            _number(verdict and verdict.measured_tokens_per_sec),
            "" if submission is None or submission.rank is None else str(submission.rank),
            f"{standing.weight:.4f}" if standing.weight else "",
        )
    return drawn


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def document(snapshot: Snapshot, layout: Layout, seconds: float) -> dict[str, Any]:
    """The result for programs: ranking, weights from the chain by hotkey, verdicts, the API, seconds."""
    names = {str(miner.hotkey): miner.name for miner in layout.miners}
    return {
        "ranking": [
            {"miner": names.get(row.miner_hotkey), **row.model_dump(mode="json")} for row in snapshot.ranking
        ],
        "weights": dict(snapshot.weights),
        "verdicts": [
            {
                "miner": standing.miner.name,
                "miner_hotkey": standing.miner.hotkey,
                "submission_id": standing.submission.submission_id,
                "claimed_tokens_per_sec": standing.submission.claimed_tokens_per_sec,
                **verdict.model_dump(mode="json"),
            }
            for standing in snapshot.standings
            if standing.submission is not None
            for verdict in standing.submission.verdicts
        ],
        "api": layout.api_url,
        "seconds": round(seconds, 1),
    }
