"""The QuasarAttention layer: projections, short convolutions, the operator, and a gated norm."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from kernels.chunk import chunk_quasar

Operator = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
CONV_WIDTH = 4
NORM_EPS = 1e-5


class ShortConvolution(nn.Module):
    """Causal depthwise convolution of width 4 followed by SiLU, on [B, T, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, CONV_WIDTH))
        nn.init.uniform_(self.weight, -(CONV_WIDTH**-0.5), CONV_WIDTH**-0.5)

    def forward(self, x: torch.Tensor, position: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve along T, seeing the present and the three tokens before it.

        position [T] counts the tokens of each packed sequence from 0: nothing is seen across a border.
        """
        if position is None:
            padded = F.pad(x.transpose(1, 2), (CONV_WIDTH - 1, 0))
            return F.silu(F.conv1d(padded, self.weight, groups=self.weight.shape[0])).transpose(1, 2)
        total = x * self.weight[:, 0, CONV_WIDTH - 1]
        for distance in range(1, CONV_WIDTH):
            earlier = F.pad(x, (0, 0, distance, 0))[:, : x.shape[1]] * (position >= distance)[:, None]
            total = total + earlier * self.weight[:, 0, CONV_WIDTH - 1 - distance]
        return F.silu(total)


class GatedRMSNorm(nn.Module):
    """RMSNorm over the head dimension times a sigmoid gate, on [B, T, H, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Normalise in float32 and gate; returns x's dtype."""
        normalised = F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), NORM_EPS)
        return (normalised * torch.sigmoid(gate.float())).to(x.dtype)


class QuasarAttention(nn.Module):
    """Attention layer [B, T, hidden] -> [B, T, hidden] around a QuasarAttention operator.

    `operator` has the signature of `kernels.chunk.chunk_quasar`; a submission's goes here.
    """

    def __init__(
        self,
        hidden_size: int = 512,
        num_heads: int = 8,
        head_dim: int = 64,
        operator: Operator = chunk_quasar,
    ) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.num_heads, self.head_dim, self.operator = num_heads, head_dim, operator
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(hidden_size, width, bias=False) for _ in range(3))
        self.q_conv, self.k_conv, self.v_conv = (ShortConvolution(width) for _ in range(3))
        self.beta_log = nn.Parameter(torch.zeros(num_heads))
        self.gate_proj = nn.Sequential(
            nn.Linear(hidden_size, head_dim, bias=False), nn.Linear(head_dim, width)
        )
        self.norm = GatedRMSNorm(head_dim)
        self.o_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the layer; cu_seqlens [N + 1] are the borders of sequences packed into a batch of 1."""
        position = _positions(cu_seqlens, x) if cu_seqlens is not None else None
        q = self._heads(self.q_conv(self.q_proj(x), position))
        k = self._heads(self.k_conv(self.k_proj(x), position))
        v = self._heads(self.v_conv(self.v_proj(x), position))
        o, _ = self.operator(q, k, v, F.softplus(self.beta_log.float()), cu_seqlens=cu_seqlens)
        output: torch.Tensor = self.o_proj(self.norm(o, self._heads(self.gate_proj(x))).flatten(-2))
        return output

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim)


def _positions(cu_seqlens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the position [T] of every token in its own sequence."""
    borders = cu_seqlens.to(x.device, torch.int64)
    starts = torch.repeat_interleave(borders[:-1], borders.diff())
    return torch.arange(x.shape[1], device=x.device) - starts
