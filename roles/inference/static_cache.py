"""A key-value cache at fixed addresses, as a captured graph needs it (needs torch and transformers)."""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class FixedCache(Cache):  # type: ignore[misc]
    """Keys and values `[1, H, length, D]` for each layer, written where `positions` says.

    transformers' StaticCache counts for itself and attends to all of its length, in the prefill too. Here the
    caller sets the slots that are written, and up to where is read: a new text attends to itself alone, as it
    does without a cache, and each step to the first `window` slots, of which its mask shows those in use.
    """

    def __init__(self, layers: int, length: int, device: torch.device) -> None:
        super().__init__(layers=[_Layer(self, length) for _ in range(layers)])
        self.length = length
        self.positions = torch.zeros(1, dtype=torch.long, device=device)
        """Slots of the tokens in the next forward call."""
        self.window: int | None = None
        """Slots that are read; None for a new text."""


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    is_compileable = True
    is_sliding = False

    def __init__(self, cache: FixedCache, length: int) -> None:
        super().__init__()
        self._cache = cache
        self._length = length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots; transformers calls this nowhere else than `update` does."""
        self.keys = self._slots(key_states)
        self.values = self._slots(value_states)
        self.is_initialized = True

    def _slots(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = states.shape
        return torch.zeros(batch, heads, self._length, dim, dtype=states.dtype, device=states.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new states and return those that the new tokens attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self._cache.positions, key_states)
        self.values.index_copy_(2, self._cache.positions, value_states)
        window = self._cache.window
        if window is None:
            return key_states, value_states
        return self.keys[:, :, :window], self.values[:, :, :window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what is attended to, for the mask of a new text."""
        return (query_length if self._cache.window is None else self._cache.window), 0

    def get_seq_length(self) -> int:
        """Zero: positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """How many tokens fit."""
        return self._length
