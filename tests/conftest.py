"""Shared test set-up: Triton runs in its interpreter wherever there is no GPU."""

import os
import shutil

# Before anything imports Triton: the variable is read once, at import.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
