"""The page at `/`: round, leaderboard and pending reveals, readable without JavaScript."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from aiohttp import web

from roles.api.reads import ReadHandlers

STYLE: Final = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;"
    "padding:0 1rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;"
    "border-bottom:1px solid #8886}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    "div{overflow-x:auto}code{font-size:.9em}"
)
REFRESH_S: Final = 10
HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class PageHandler:
    """Shows what the reading endpoints answer."""

    def __init__(self, reads: ReadHandlers) -> None:
        self._reads = reads

    async def show(self, _request: web.Request) -> web.Response:
        """The page."""
        board = await self._reads.board()
        current = await self._reads.round()
        pending = await self._reads.pending()
        hours, seconds = divmod(current.time_remaining_seconds, 3600)
        places = [
            (
                str(row.place),
                row.miner_hotkey,
                row.league,
                f"{row.tokens_per_sec:,.0f}",
                f"{row.weighted_score:,.0f}",
                f"{row.share:.0%}",
            )
            for row in board.rows
        ]
        waiting = [
            (str(row.submission_id), row.miner_hotkey, row.commitment_hash, str(row.blocks_remaining))
            for row in pending.pending_reveals
        ]
        body = (
            f"<h1>QUASAR</h1><p>Round {current.round_number}, {hours} h {seconds // 60} min left, "
            f"{current.total_submissions} submissions. Block {board.current_block:,}.</p>"
            "<h2>Leaderboard</h2>"
            + _table(
                ("Place", "Hotkey", "League", "Tokens/s", "Weighted score", "Share"),
                places,
                empty="Nobody is ranked yet.",
                numbers=(0, 3, 4, 5),
            )
            + "<h2>Pending reveals</h2>"
            + _table(
                ("Submission", "Hotkey", "Commitment", "Blocks left"),
                waiting,
                empty="No commitment waits for its reveal.",
                numbers=(0, 3),
            )
            + '<p><a href="/openapi.json">API description</a></p>'
        )
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>QUASAR subnet</title>'
            f'<meta name="viewport" content="width=device-width">'
            f'<meta http-equiv="refresh" content="{REFRESH_S}">'
            f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>"
        )
        return web.Response(text=text, content_type="text/html", headers=HEADERS)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str, numbers: Sequence[int]) -> str:
    lines = [_row("td", row, numbers) for row in rows]
    if not lines:
        return f"<p>{escape(empty)}</p>"
    return (
        f"<div><table><thead>{_row('th', head, numbers)}</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _row(cell: str, texts: Sequence[str], numbers: Sequence[int]) -> str:
    cells = (
        f"<{cell}{' class=n' if index in numbers else ''}>{escape(text)}</{cell}>"
        for index, text in enumerate(texts)
    )
    return f"<tr>{''.join(cells)}</tr>"
