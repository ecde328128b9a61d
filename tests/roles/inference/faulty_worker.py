"""The model's process with faults: a prompt's first token or a file in the model's folder asks for one."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import roles.inference.engine as module
from roles.inference import worker
from roles.inference.decoding import Generation
from roles.inference.warm_up import Progress

POISON = 13
"""Reads outside a table on the device: every later call to CUDA fails."""
NO_MEMORY = 14
"""This one answer does not fit."""
NO_MEMORY_LEFT = 15
"""Nothing fits any more."""
DIES_IN_WARM_UP = "dies-in-warm-up"
ANSWERS_LATER = "answers-later"
"""Finishes no answer until the file is gone."""
WARMS_UP_SLOWLY = "warms-up-slowly"
"""Waits between two parts until the file is gone."""


class FaultyEngine(module.Engine):
    """An engine that breaks on demand."""

    _fault = 0

    def begin(self, prompt: list[int], gen_len: int, logits_at_step: int | None) -> None:
        """Take up an answer, with the fault that the first token names."""
        super().begin(prompt, gen_len, logits_at_step)
        if self._fault != NO_MEMORY_LEFT:
            self._fault = prompt[0]
        if self._fault == POISON:
            index = torch.tensor([10**6], device=self._device)
            torch.zeros(10, device=self._device)[index].sum().item()

    def advance(self, budget_s: float) -> Generation | None:
        """Work, or have no memory for it."""
        if self._fault in (NO_MEMORY, NO_MEMORY_LEFT):
            raise self._out_of_memory()
        if (Path(self._name) / ANSWERS_LATER).exists():
            time.sleep(budget_s / 10)
            return None
        return super().advance(budget_s)

    def warm_up(self) -> Iterator[Progress]:
        """Die, or take the time that the test needs to look."""
        folder = Path(self._name)
        if (folder / DIES_IN_WARM_UP).exists():
            os._exit(1)
        yield Progress(0, 2, "first part")
        while (folder / WARMS_UP_SLOWLY).exists():
            yield Progress(1, 2, "second part")
        self.warning = "decoding without fused steps: no compiler"


def main() -> int:
    """As the real one."""
    module.Engine = FaultyEngine  # type: ignore[misc]
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
