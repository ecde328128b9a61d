"""Small operations of a model fused by the compiler while a graph is captured (needs torch)."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType, ModuleType
from typing import Any, Final

import torch

FUSED_MODULES: Final = ("RMSNorm", "MLP")
"""Ends of the names of classes whose `forward` is many small launches."""
ROTARY: Final = "apply_rotary_pos_emb"
"""The function of transformers' models that turns queries and keys."""
OPTIONS: Final[dict[str, Any]] = {"emulate_precision_casts": True}
"""Rounded where the model rounds, so that a fused step is the step that was written."""


@contextmanager
def fused(model: Any) -> Iterator[None]:
    """Let norms, MLPs and rotary embeddings of `model` be compiled; afterwards it is as it was.

    A decoding step of one token is bound by its launches, and most of them are elementwise. What a captured
    graph replays needs neither the compiler nor Python.
    """
    from torch._inductor import config

    compiled: dict[type, Any] = {}
    with ExitStack() as stack:
        # A handful of small kernels: a pool of compiler processes would take longer to start.
        stack.enter_context(config.patch(compile_threads=1))
        for module in model.modules():
            kind = type(module)
            if not kind.__name__.endswith(FUSED_MODULES):
                continue
            if kind not in compiled:
                compiled[kind] = torch.compile(kind.forward, dynamic=False, options=OPTIONS)
            module.forward = MethodType(compiled[kind], module)
            stack.callback(delattr, module, "forward")
        for source in _modeling_modules(model):
            original = getattr(source, ROTARY)
            setattr(source, ROTARY, torch.compile(original, dynamic=False, options=OPTIONS))
            stack.callback(setattr, source, ROTARY, original)
        yield


def _modeling_modules(model: Any) -> list[ModuleType]:
    """Modules of Python in which the model's layers find the rotary function."""
    names = {type(module).__module__ for module in model.modules()}
    return [sys.modules[name] for name in sorted(names) if hasattr(sys.modules.get(name), ROTARY)]
