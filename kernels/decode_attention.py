"""Attention of one new token to the text before it, kept in a cache of fixed size (softmax, grouped heads).

Turning the query and key (rotary embedding), storing the new key and value and attending are one launch. Keys
and values are read as they are stored; sums are in float32, always in the same order.
"""

import torch

from kernels.backend import input_guard, tl, triton

BLOCK_NUMBERS = 16_384
"""Of the keys, that a program looks at in one step: 256 tokens of 64, as was fastest on an H200."""
NUM_WARPS = 8


@triton.jit
def _turned(x, cos, sin, column, D: tl.constexpr):
    """The rotary embedding of a head: halves are pairs."""
    inside = column < D
    half: tl.constexpr = D // 2
    own = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + (column + half) % D, mask=inside, other=0.0).to(tl.float32)
    other = tl.where(column < half, -other, other)
    cosine = tl.load(cos + column, mask=inside, other=0.0).to(tl.float32)
    return own * cosine + other * tl.load(sin + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _attention_kernel(
    qkv, cos, sin, keys, values, position, o, scaling, slots,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    kept = head // GROUP
    column = tl.arange(0, BD)
    inside = column < D
    filled = tl.load(position)
    query = _turned(qkv + head * D, cos, sin, column, D) * scaling
    key = _turned(qkv + (H + kept) * D, cos, sin, column, D).to(keys.dtype.element_ty)
    value = tl.load(qkv + (H + H // GROUP + kept) * D + column, mask=inside, other=0.0)
    base = kept.to(tl.int64) * slots * D
    if head % GROUP == 0:
        # The other heads of the group read only slots before this one.
        slot = base + filled * D + column
        tl.store(keys + slot, key, mask=inside)
        tl.store(values + slot, value, mask=inside)
    largest = tl.sum(query * key.to(tl.float32), axis=0)
    weights = largest * 0.0 + 1.0
    output = value.to(tl.float32)
    for start in range(0, filled, BLOCK):
        token = start + tl.arange(0, BLOCK)
        known = token < filled
        offset = base + token[:, None] * D + column[None, :]
        mask = known[:, None] & inside[None, :]
        key_block = tl.load(keys + offset, mask=mask, other=0.0).to(tl.float32)
        value_block = tl.load(values + offset, mask=mask, other=0.0).to(tl.float32)
        score = tl.where(known, tl.sum(key_block * query[None, :], axis=1), float("-inf"))
        above = tl.maximum(largest, tl.max(score, axis=0))
        shrink = tl.exp(largest - above)
        weight = tl.exp(score - above)
        output = output * shrink + tl.sum(value_block * weight[:, None], axis=0)
        weights = weights * shrink + tl.sum(weight, axis=0)
        largest = above
    tl.store(o + head * D + column, (output / weights).to(o.dtype.element_ty), mask=inside)


@input_guard
def decode_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return the attention [H * D] of a token's query to all slots up to its own, where it is stored first.

    qkv [(H + 2 G) * D] holds H query heads, G keys and G values, not turned yet; query heads of a group
    follow one another. cos and sin [D] belong to `position` [1], the slot of keys and values
    [1, G, slots, D], which are contiguous.
    """
    _, kept, slots, dim = keys.shape
    heads = qkv.numel() // dim - 2 * kept
    o = qkv.new_empty(heads * dim)
    padded = triton.next_power_of_2(dim)
    _attention_kernel[(heads,)](
        qkv, cos, sin, keys, values, position, o, scaling, slots,
        heads, heads // kept, dim, padded, BLOCK_NUMBERS // padded, num_warps=NUM_WARPS,
    )  # fmt: skip
    return o
