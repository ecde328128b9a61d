"""The model's process with faults that a test asks for by the first token of a prompt."""

import sys
from typing import Any

import roles.inference.engine as module
from roles.inference import worker

POISON = 13
"""Reads outside a table on the device: every later call to CUDA fails."""
NO_MEMORY = 14


class FaultyEngine(module.Engine):
    """An engine that breaks on demand."""

    def begin(self, prompt: list[int], gen_len: int, logits_at_step: int | None) -> None:
        super().begin(prompt, gen_len, logits_at_step)
        if prompt[0] == POISON:
            self._poison()
        if prompt[0] == NO_MEMORY:
            self._fill_memory()

    def _poison(self) -> None:
        import torch

        index = torch.tensor([10**6], device=self._device)
        torch.zeros(10, device=self._device)[index].sum().item()

    def _fill_memory(self) -> None:
        import torch

        if self._device.type == "cpu":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        torch.zeros(2**45, dtype=torch.uint8, device=self._device)

    def advance(self, budget_s: float) -> Any:
        return super().advance(budget_s)


def main() -> int:
    """As the real one."""
    module.Engine = FaultyEngine  # type: ignore[misc]
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
