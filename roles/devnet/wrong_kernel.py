"""The kernel of the miner that must not be paid: a shipped one with a mistake that people really make."""

from kernels.export import export_files
from protocol.errors import ExportFailed

_EXACT = "return beta * tl.where(is_small, series, ratio)"
_EULER = "return beta / (1.0 + x)  # a step of the backward Euler method"


def wrong_files() -> dict[str, str]:
    """The files of `fla/ops/quasar/` whose operator runs, looks right, and misses the thresholds.

    Raises ExportFailed when the shipped gate has changed so that the mistake has no place in it.
    """
    files = export_files("chunk")
    if files["gate.py"].count(_EXACT) != 1:
        raise ExportFailed(f"gate.py must hold `{_EXACT}` once for the devnet's wrong kernel to replace it")
    return {**files, "gate.py": files["gate.py"].replace(_EXACT, _EULER)}
