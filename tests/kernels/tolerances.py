"""The one place of tolerances: relative error against the float64 recurrence, by dtype of the inputs."""

import torch

RELATIVE_ERROR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""16-bit results are rounded once, on the way out."""

STATE_ERROR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""States are float32 throughout; on a GPU products take operands of the inputs' type."""
