"""The process that searches launch parameters for the miner: `python -m roles.miner.tuning_worker`.

One method, `tune`: goes on with the study for so many seconds, in turns with others on the device.
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

from node.device_turns import BackgroundTurn
from node.worker_main import serve

TURN_PATIENCE_S: Final = 1800.0


def main() -> int:
    """Serve calls until the parent closes stdin."""
    serve({"tune": tune})
    return 0


def tune(params: dict[str, Any]) -> dict[str, Any]:
    """Search on `device` for sequences of `length` for `budget_s`; the best configuration, or none.

    Raises ConfigError when the file for the result cannot be read, DeviceBusy when others keep the device.
    """
    device = params["device"]
    if device == "cpu":
        # Before Triton is imported.
        os.environ["TRITON_INTERPRET"] = "1"
    with BackgroundTurn(device, timeout_s=TURN_PATIENCE_S) as turn:
        import torch

        from kernels.benchmark import Benchmark
        from kernels.harness.inputs import Shape
        from kernels.tuner import Tuner

        shape = Shape(
            batch=1,
            length=params["length"],
            heads=2 if device == "cpu" else 8,
            dim=32 if device == "cpu" else 64,
            dtype="float32" if device == "cpu" else "bfloat16",
        )
        tuner = Tuner(
            shape,
            Benchmark(torch.device(device), repetitions=3 if device == "cpu" else 9),
            database=Path(params["database"]),
            on_trial=lambda outcome: print(_line(outcome), file=sys.stderr, flush=True),
            between=turn.give_way,
        )
        found = tuner.run(budget_s=params["budget_s"])
    if found is None:
        return {"configuration": None, "milliseconds": None, "trials": tuner.done}
    return {
        "configuration": found.choice.parameters,
        "milliseconds": found.milliseconds,
        "trials": found.trials,
    }


def _line(outcome: Any) -> str:
    told = outcome.reason if outcome.milliseconds is None else f"{outcome.milliseconds:.3f} ms"
    return f"{outcome.choice}: {told}"


if __name__ == "__main__":
    sys.exit(main())
