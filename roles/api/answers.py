"""Answers as JSON: models and lists of models."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter

_LIST: TypeAdapter[Any] = TypeAdapter(list[Any])


def model_answer(model: BaseModel) -> web.Response:
    """200 with one model."""
    return web.Response(body=model.model_dump_json().encode(), content_type="application/json")


def list_answer(models: Sequence[BaseModel]) -> web.Response:
    """200 with a list of models."""
    return web.Response(body=_LIST.dump_json(list(models)), content_type="application/json")


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
