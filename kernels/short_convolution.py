"""Causal depthwise convolution of width 4 and SiLU over q, k and v at once, with a state for streaming."""

from dataclasses import dataclass

import torch

from kernels.backend import input_guard, tl, triton

CONV_WIDTH = 4
MEMORY = CONV_WIDTH - 1
"""Tokens that the convolution looks back."""
BLOCK_TOKENS = 32
BLOCK_CHANNELS = 128


@dataclass(frozen=True, slots=True)
class Places:
    """Where each of T tokens stands: its sequence, and how many tokens of it came before; int64 [T]."""

    sequence: torch.Tensor
    position: torch.Tensor
    ends: torch.Tensor
    """The first token after each sequence, int64 [N]."""

    @classmethod
    def of(cls, batch: int, length: int, cu_seqlens: torch.Tensor | None, device: torch.device) -> "Places":
        """Places in a batch of equal sequences, or in packed ones."""
        if cu_seqlens is None:
            borders = torch.arange(batch + 1, device=device) * length
        else:
            borders = cu_seqlens.to(device, torch.int64)
        sequence = torch.repeat_interleave(borders.diff(), output_size=batch * length)
        position = torch.arange(batch * length, device=device) - borders[sequence]
        return cls(sequence, position, borders[1:])


@triton.jit
def _convolution_kernel(
    x, weight, state, out, sequence, position, tokens,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(CHANNELS, BC)
    channel = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    token = (tl.program_id(0) // blocks).to(tl.int64) * BT + tl.arange(0, BT)
    inside, is_channel = token < tokens, (channel < CHANNELS)[None, :]
    place = tl.load(position + token, mask=inside, other=0)
    total = tl.zeros((BT, BC), dtype=tl.float32)
    for distance in tl.static_range(4):
        tap = tl.load(weight + channel * 4 + (3 - distance), mask=channel < CHANNELS, other=0.0)
        is_here = (inside & (place >= distance))[:, None] & is_channel
        value = tl.load(
            x + (token - distance)[:, None] * CHANNELS + channel[None, :], mask=is_here, other=0.0
        )
        if HAS_STATE:
            # What came before this call: the last three tokens, the newest last.
            is_before = (inside & (place < distance))[:, None] & is_channel
            slot = tl.load(sequence + token, mask=inside, other=0) * 3 + 3 + place - distance
            value += tl.load(state + slot[:, None] * CHANNELS + channel[None, :], mask=is_before, other=0.0)
        total += value.to(tl.float32) * tap.to(tl.float32)[None, :]
    activated = total / (1.0 + tl.exp(-total))
    # q, k and v one after another, each [T, WIDTH].
    offset = (channel // WIDTH)[None, :].to(tl.int64) * tokens * WIDTH
    offset += token[:, None] * WIDTH + (channel % WIDTH)[None, :]
    tl.store(out + offset, activated.to(out.dtype.element_ty), mask=inside[:, None] & is_channel)


@input_guard
def short_convolution(
    x: torch.Tensor, weight: torch.Tensor, state: torch.Tensor | None, places: Places
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q, k and v [3, T, C / 3] after convolution and SiLU, and the state [N, 3, C] for what follows.

    x [T, C] are the projections, weight [C, 1, 4], state [N, 3, C] the last three rows of x before this call
    (None: there were none). Sums are float32, the result has x's dtype.
    """
    tokens, channels = x.shape
    out = torch.empty(3, tokens, channels // 3, dtype=x.dtype, device=x.device)
    if tokens:
        grid = (triton.cdiv(tokens, BLOCK_TOKENS) * triton.cdiv(channels, BLOCK_CHANNELS),)
        _convolution_kernel[grid](
            x, weight, x if state is None else state, out, places.sequence, places.position,
            tokens, channels, channels // 3, BLOCK_TOKENS, BLOCK_CHANNELS, state is not None,
        )  # fmt: skip
    return out, _next_state(x, state, places)


def _next_state(x: torch.Tensor, state: torch.Tensor | None, places: Places) -> torch.Tensor:
    """The last three rows of every sequence, from the state before where the call brought fewer."""
    starts = torch.cat([places.ends.new_zeros(1), places.ends[:-1]])
    token = places.ends[:, None] + torch.arange(-MEMORY, 0, device=x.device)
    missing = starts[:, None] - token
    size = (*token.shape, x.shape[1])
    rows = x[token.clamp(0, len(x) - 1)] if len(x) else x.new_zeros(size)
    if state is None:
        earlier = torch.zeros_like(rows)
    else:
        slot = (MEMORY - missing).clamp(0, MEMORY - 1)
        earlier = state.to(x.dtype).gather(1, slot[:, :, None].expand(size))
    return torch.where((missing > 0)[:, :, None], earlier, rows)
