"""What a language model is told: the definition, the rules, the current kernel, how it ran, what failed."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kernels.export import export_files
from protocol.forks import TARGET_DIR, TARGET_FILES
from protocol.import_rules import REQUIRED_IN, REQUIRED_MODULES, REQUIRED_NAMES
from protocol.rules import MAX_ABS_DIFFERENCE, MAX_RELATIVE_TO_YARDSTICK, MIN_COSINE_SIMILARITY
from roles.miner.history import Entry

MAX_REASON_CHARS: Final = 2000

SYSTEM: Final = f"""\
You write Triton kernels. You are given an operator, its current implementation as the files of the package
{TARGET_DIR.replace("/", ".")}, and how it ran. Make it faster without making it wrong.

The operator, QuasarAttention, for q, k, v [B, T, H, D] and beta [H], for every batch and head, with S_0 = 0:
    alpha_t = (1 - exp(-beta * |k_t|^2)) / |k_t|^2
    S_t = S_(t-1) + alpha_t * outer(k_t, v_t - k_t^T S_(t-1))
    o_t = q_t^T S_t
Entry points: chunk_quasar(q, k, v, beta, initial_state=None, output_final_state=False, cu_seqlens=None,
**kwargs) in chunk.py and fused_recurrent_quasar with the same parameters in fused_recurrent.py; they return
(o [B, T, H, D] in q's dtype, final state [N, H, D, D] in float32 or None). Only the forward pass is needed.
It is checked on fresh random inputs of many shapes, packed sequences too, and in parts that go from state to
state, per token and head, against a float32 recurrence: cosine similarity at least
{MIN_COSINE_SIMILARITY}, largest difference at most {MAX_ABS_DIFFERENCE}, error at most
{MAX_RELATIVE_TO_YARDSTICK:g} times that of a pinned bfloat16 kernel.
What is timed: chunk_quasar with B = 1, H = 8, D = 64 in bfloat16, on inputs that it never saw before.

Rules: all of {", ".join(TARGET_FILES)} must exist. {REQUIRED_IN} must keep, at its top level:
{chr(10).join(line for _, _, line in REQUIRED_MODULES)}
{chr(10).join(f"from {module} import {name}" for module, name in REQUIRED_NAMES)}
Nothing may import from fla.ops.gla or fla.ops.kda, in any way, or be a copy of their kernels; no exec, eval,
importlib, star imports.
The code runs in a sandbox without network, files or environment.

Answer in exactly this form and nothing else, with every file that you change, whole:
SUMMARY: one line that says what you changed and why it is faster
FILE: chunk.py
```python
the whole file
```
"""


def start_files() -> dict[str, str]:
    """The kernel that a model begins with."""
    return export_files("chunk")


def task(
    base: Entry, files: Mapping[str, str], attempts: Sequence[Entry], target_sequence_length: int
) -> str:
    """The message that asks for one change to `base`; attempts: what came of the latest, oldest first."""
    parts = [
        f"Sequence length: {target_sequence_length:,} tokens.",
        f"The current kernel (candidate {base.number}): {_profile(base)}",
    ]
    parts += [f"{name}:\n```python\n{text}```" for name, text in sorted(files.items())]
    told = [_attempt(entry) for entry in attempts if entry.number != base.number]
    if told:
        parts.append("Earlier attempts, the latest last:\n" + "\n".join(told))
    parts.append("Give one change that makes chunk_quasar faster. Do not repeat what has failed.")
    return "\n\n".join(parts)


def _profile(entry: Entry) -> str:
    """Figures of a measurement: the device, the time, its spread, the error, what the memory allows."""
    if entry.figures is None:
        return "not measured yet."
    figures = entry.figures
    evidence: Mapping[str, Any] = figures.get("evidence", {})
    shape = evidence.get("shape", {})
    lines = [f"verdict {entry.status} ({entry.reason[:MAX_REASON_CHARS]}) on {figures.get('gpu')}"]
    if entry.tokens_per_sec:
        tokens = shape.get("batch", 1) * shape.get("length", 0)
        seconds = tokens / entry.tokens_per_sec
        size = 4 * tokens * shape.get("heads", 0) * shape.get("dim", 0)
        moved_bytes = size * (2 if shape.get("dtype") == "bfloat16" else 4)
        lines.append(
            f"{entry.tokens_per_sec:,.0f} tokens/s, {1e3 * seconds:.3f} ms for {tokens:,} tokens; "
            f"q, k, v read and o written once in that time would be {moved_bytes / seconds / 1e9:,.1f} GB/s"
        )
    for name in ("spread", "relative_error", "vram_mb"):
        if figures.get(name) is not None:
            lines.append(f"{name} {figures[name]:.3g}")
    stages = evidence.get("stage_s", {})
    if stages:
        lines.append("seconds: " + ", ".join(f"{name} {seconds}" for name, seconds in stages.items()))
    return "; ".join(lines) + "."


def _attempt(entry: Entry) -> str:
    speed = "" if entry.tokens_per_sec is None else f", {entry.tokens_per_sec:,.0f} tokens/s"
    outcome = entry.status or entry.phase.value
    return f"- {entry.note or entry.name}: {outcome}{speed}: {entry.reason[:MAX_REASON_CHARS]}"
