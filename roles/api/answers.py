"""Answers as JSON: models and lists of models."""

from collections.abc import Sequence
from math import inf

from aiohttp import web
from pydantic import BaseModel


def model_answer(model: BaseModel) -> web.Response:
    """200 with one model."""
    return web.Response(body=model.model_dump_json().encode(), content_type="application/json")


def list_answer(models: Sequence[BaseModel], *, max_bytes: float = inf) -> web.Response:
    """200 with a list of models; with `max_bytes`, of the first ones as many as fit, and one at least."""
    parts: list[bytes] = []
    size = 0
    for model in models:
        part = model.model_dump_json().encode()
        size += len(part) + 1
        if parts and size > max_bytes:
            break
        parts.append(part)
    return web.Response(body=b"[" + b",".join(parts) + b"]", content_type="application/json")


class LastAnswer:
    """The bytes of the model that was shown last: the same one again need not be written again."""

    def __init__(self) -> None:
        self._model: BaseModel | None = None
        self._body = b""

    def show(self, model: BaseModel) -> web.Response:
        """200 with the model."""
        if model is not self._model:
            self._model, self._body = model, model.model_dump_json().encode()
        return web.Response(body=self._body, content_type="application/json")
