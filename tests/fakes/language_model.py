"""A server that speaks OpenAI's chat completions over HTTP and answers what a test has written down."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "sk-key-of-the-miner"


@dataclass
class ScriptedModel:
    """Gives the answers in turn, the last one for ever; remembers what it was asked."""

    answers: list[str | web.Response]
    asked: list[dict[str, Any]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    """While set and not fired, a question gets no answer."""
    base_url: str = ""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listen on loopback; gives the base URL."""
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self.base_url
        finally:
            await runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json() | {"authorization": request.headers.get("Authorization")})
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(answer, web.Response):
            return answer
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": "x", "object": "chat.completion", "choices": [choice]})


def answer_with(files: dict[str, str], summary: str = "faster") -> str:
    """An answer in the form that the agent is told to keep."""
    parts = [f"SUMMARY: {summary}"]
    parts += [f"FILE: {name}\n```python\n{text.rstrip()}\n```" for name, text in files.items()]
    return "\n".join(parts)
