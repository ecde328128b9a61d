"""The QuasarAttention layer: projections, short convolutions, the operator, and a gated norm."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from kernels.chunk import chunk_quasar
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.gated_norm import gated_norm_
from kernels.gradients import forward_only
from kernels.short_convolution import CONV_WIDTH, Places, short_convolution

Operator = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]

SLAB_TOKENS = 262_144
"""Tokens of all sequences that are under way at once: what a call needs beside its input and its output."""
DECODE_TOKENS = 16
"""Up to so many tokens of a sequence are taken one by one."""


@dataclass(frozen=True, slots=True)
class LayerState:
    """What the layer remembers of N sequences: convolution inputs [N, 3, 3 * H * D], states [N, H, D, D]."""

    convolution: torch.Tensor
    recurrent: torch.Tensor


class QuasarAttention(nn.Module):
    """Attention layer [B, T, hidden] -> [B, T, hidden] around a QuasarAttention operator.

    `operator` has the signature of `kernels.chunk.chunk_quasar`; a submission's goes here. Values only:
    differentiating them raises.
    """

    def __init__(
        self,
        hidden_size: int = 512,
        num_heads: int = 8,
        head_dim: int = 64,
        operator: Operator = chunk_quasar,
        decode_operator: Operator = fused_recurrent_quasar,
    ) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.operator, self.decode_operator = operator, decode_operator
        self.qkv_proj = nn.Linear(hidden_size, 3 * width, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(3 * width, 1, CONV_WIDTH))
        nn.init.uniform_(self.conv_weight, -(CONV_WIDTH**-0.5), CONV_WIDTH**-0.5)
        self.beta_log = nn.Parameter(torch.zeros(num_heads))
        self.gate_proj = nn.Sequential(
            nn.Linear(hidden_size, head_dim, bias=False), nn.Linear(head_dim, width)
        )
        self.norm_weight = nn.Parameter(torch.ones(head_dim))
        self.o_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the layer; cu_seqlens [N + 1] are the borders of sequences packed into a batch of 1."""
        batch, length, _ = x.shape
        slab = max(1, SLAB_TOKENS // max(1, batch))
        if cu_seqlens is not None or length <= slab:
            return self.stream(x, cu_seqlens=cu_seqlens)[0]
        out = x.new_empty(0)
        state: LayerState | None = None
        for start in range(0, length, slab):
            part, state = self.stream(x[:, start : start + slab], state)
            if start == 0:
                out = part.new_empty(batch, length, part.shape[-1])
            out[:, start : start + slab] = part
        return out

    def stream(
        self, x: torch.Tensor, state: LayerState | None = None, cu_seqlens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, LayerState]:
        """Apply the layer to what follows `state`, and return what follows then.

        A sequence in parts, down to single tokens, gives what it gives in one piece.
        """
        with torch.no_grad():
            y, following = self._stream(x, state, cu_seqlens)
        return forward_only("QuasarAttention", y, x, *self.parameters()), following

    def _stream(
        self, x: torch.Tensor, state: LayerState | None, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerState]:
        batch, length, _ = x.shape
        if torch.is_autocast_enabled(x.device.type):
            # Once, and not for each projection.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        places = Places.of(batch, length, cu_seqlens, x.device)
        projected = self.qkv_proj(x).flatten(0, 1)
        qkv, convolution = short_convolution(
            projected, self.conv_weight, None if state is None else state.convolution, places
        )
        del projected
        q, k, v = qkv.view(3, batch, length, self.num_heads, self.head_dim).unbind(0)
        is_decoding = cu_seqlens is None and length <= DECODE_TOKENS
        o, recurrent = (self.decode_operator if is_decoding else self.operator)(
            q, k, v, F.softplus(self.beta_log.float()),
            initial_state=None if state is None else state.recurrent,
            output_final_state=True,
            cu_seqlens=cu_seqlens,
        )  # fmt: skip
        del qkv, q, k, v
        assert recurrent is not None
        gate = self.gate_proj(x).view(o.shape)
        y: torch.Tensor = self.o_proj(gated_norm_(o.contiguous(), gate, self.norm_weight).flatten(-2))
        return y, LayerState(convolution, recurrent)
