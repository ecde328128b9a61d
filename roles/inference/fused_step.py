"""A step of decoding in five launches for each layer, where a model has the usual layers (needs torch)."""

from dataclasses import dataclass
from typing import Any, Final, Self

import torch

from kernels.decode_attention import decode_attention
from kernels.decode_linear import Norm, decode_gated, decode_linear
from roles.inference.static_cache import FixedCache

PARTS: Final = {
    "": ("input_layernorm", "mlp", "post_attention_layernorm", "self_attn"),
    "self_attn": ("k_proj", "o_proj", "q_proj", "v_proj"),
    "mlp": ("act_fn", "down_proj", "gate_proj", "up_proj"),
}
"""Modules of a layer as Llama, Mistral and Qwen2 have it."""


class UnusualModel(RuntimeError):
    """The model's layers are not those that a fused step knows."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer."""

    before_attention: Norm
    qkv: list[torch.Tensor]
    qkv_bias: list[torch.Tensor] | None
    scaling: float
    o: torch.Tensor
    before_mlp: Norm
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Take the weights of a model's layer. Raises UnusualModel."""
        for name, parts in PARTS.items():
            found = tuple(sorted(dict(layer.get_submodule(name).named_children())))
            if found != parts:
                raise UnusualModel(f"{type(layer).__name__} has {', '.join(found)}, not {', '.join(parts)}")
        attention, mlp = layer.self_attn, layer.mlp
        sample = torch.linspace(-4.0, 4.0, 9)
        if not torch.allclose(mlp.act_fn(sample), torch.nn.functional.silu(sample)):
            raise UnusualModel(f"its activation is {type(mlp.act_fn).__name__}")
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        plain = [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        for linear in (*projections, *plain):
            if type(linear) is not torch.nn.Linear:
                raise UnusualModel(f"a projection is a {type(linear).__name__}")
        biases = [linear.bias for linear in projections if linear.bias is not None]
        if len(biases) not in (0, 3) or any(linear.bias is not None for linear in plain):
            raise UnusualModel("some of its projections have a bias")
        return cls(
            before_attention=_norm(layer.input_layernorm),
            qkv=[linear.weight for linear in projections],
            qkv_bias=biases or None,
            scaling=attention.scaling,
            o=attention.o_proj.weight,
            before_mlp=_norm(layer.post_attention_layernorm),
            gate=mlp.gate_proj.weight,
            up=mlp.up_proj.weight,
            down=mlp.down_proj.weight,
        )


class FusedStep:
    """A model's forward call for one token, its keys and values stored in `cache`.

    Rounds where results are stored and nowhere else, so it is closer to float32 than the model. Whether it is
    the model's step at all is for a comparison to say. Raises UnusualModel.
    """

    def __init__(self, model: Any, cache: FixedCache) -> None:
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise UnusualModel("its output layer has a bias")
        self._embedding = model.get_input_embeddings()
        self._turn = decoder.rotary_emb
        self._layers = [_Layer.of(layer) for layer in decoder.layers]
        self._last = _norm(decoder.norm)
        self._head = head.weight
        self._cache = cache

    def __call__(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Return the logits [V] after `token` [1, 1] at `position` [1]."""
        x = self._embedding(token)
        cos, sin = (each.flatten() for each in self._turn(x, position[None]))
        if cos.numel() != self._cache.layers[0].keys.shape[-1]:
            raise UnusualModel(f"it turns {cos.numel()} numbers of each head")
        x = x.flatten()
        for layer, kept in zip(self._layers, self._cache.layers, strict=True):
            qkv = decode_linear(x, layer.qkv, layer.qkv_bias, norm=layer.before_attention)
            seen = decode_attention(qkv, cos, sin, kept.keys, kept.values, position, layer.scaling)
            x = decode_linear(seen, [layer.o], residual=x)
            inner = decode_gated(x, layer.gate, layer.up, layer.before_mlp)
            x = decode_linear(inner, [layer.down], residual=x)
        return decode_linear(x, [self._head], norm=self._last)


def _norm(module: Any) -> Norm:
    eps = getattr(module, "variance_epsilon", None)
    if not isinstance(eps, float):
        raise UnusualModel(f"{type(module).__name__} is no RMSNorm as Llama has it")
    return Norm(module.weight, eps)
