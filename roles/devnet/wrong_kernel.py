"""The kernel of the miner that must not be paid: a shipped one with a mistake that people really make."""

from kernels.export import export_files
from protocol.errors import ExportFailed

_EXACT = "quasar_gate(flat_k, beta)"
_EULER = '''

def _euler_gate(k, beta):
    """The step of the backward Euler method in place of the exact exponential."""
    return beta.float() / (1.0 + beta.float() * k.float().square().sum(-1))
'''


def wrong_files() -> dict[str, str]:
    """The files of `fla/ops/quasar/` whose operator runs, looks right, and misses the thresholds.

    Raises ExportFailed when the shipped kernel has changed so that the mistake has no place in it.
    """
    files = export_files("chunk")
    if files["chunk.py"].count(_EXACT) != 1:
        raise ExportFailed(f"chunk.py must call {_EXACT} once for the devnet's wrong kernel to replace it")
    files["chunk.py"] = files["chunk.py"].replace(_EXACT, "_euler_gate(flat_k, beta)") + _EULER
    return files
