"""Answers as JSON: models and lists of models."""

from collections.abc import Sequence

from aiohttp import web
from pydantic import BaseModel


def model_answer(model: BaseModel) -> web.Response:
    """200 with one model."""
    return web.Response(body=model.model_dump_json().encode(), content_type="application/json")


def list_answer(models: Sequence[BaseModel], *, max_bytes: int | None = None) -> web.Response:
    """200 with a list of models; with `max_bytes`, of the first ones as many as fit, and one at least."""
    parts: list[bytes] = []
    left = max_bytes
    for model in models:
        part = model.model_dump_json().encode()
        if left is not None:
            left -= len(part) + 1
            if left < 0 and parts:
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
