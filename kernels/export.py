"""Write the shipped kernels as the files of a fork: one source, two homes.

The kernel modules are the truth. A small, fixed set of rules on their import lines moves them from
`kernels` to `fla.ops.quasar` and `fla.utils`; the launch parameters are set in `chunk.py`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernels.fork_base import write_fla_base
from kernels.launch import Launch
from kernels.presets import DEFAULT, Preset
from protocol.errors import ExportFailed, UsageError
from protocol.forks import TARGET_DIR, TARGET_FILES

_SUPPORT_FILES: Final = ("shapes.py", "gradients.py", "launch.py", "bound.py", "segments.py")
_OUR_IMPORT: Final = re.compile(r"^from kernels\.(\w+) import (.+)\n", re.MULTILINE)
_TRITON_LINES: Final = {"triton": "import triton\n", "tl": "import triton.language as tl\n"}

_REQUIRED_IMPORTS: Final = """\
import torch
import torch.nn.functional as F  # noqa: F401
import triton
import triton.language as tl
from fla.ops.quasar.forward_substitution import forward_substitution_kernel  # noqa: F401
from fla.ops.utils.index import prepare_chunk_indices
from fla.utils import (  # noqa: F401
    IS_AMD,
    autocast_custom_bwd,
    autocast_custom_fwd,
    autotune_cache_kwargs,
    check_shared_mem,
    input_guard,
)
"""
"""What the rules of the competition want to see in chunk.py, used or not."""

_INIT: Final = '''"""QuasarAttention operators."""

from fla.ops.quasar.chunk import chunk_quasar
from fla.ops.quasar.fused_recurrent import fused_recurrent_quasar

__all__ = ["chunk_quasar", "fused_recurrent_quasar"]
'''

_RECURRENT_ENTRY: Final = '''

from fla.ops.quasar.fused_recurrent import fused_recurrent_quasar


def chunk_quasar(q, k, v, beta, initial_state=None, output_final_state=False, cu_seqlens=None, **kwargs):
    """Token by token: the plain schedule to start from."""
    return fused_recurrent_quasar(q, k, v, beta, initial_state, output_final_state, cu_seqlens)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A shipped kernel: launch parameters over the preset's, and text appended to chunk.py."""

    name: str
    summary: str
    chunk_size: int | None = None
    entry: str = ""


VARIANTS: Final = {
    variant.name: variant
    for variant in (
        Variant(name="chunk", summary="a chunk of tokens at a time, state on chip"),
        Variant(name="chunk64", summary="the same in chunks of 64 tokens: fewer steps", chunk_size=64),
        Variant(name="recurrent", summary="token by token", entry=_RECURRENT_ENTRY),
    )
}


_TUNED: Final = '''"""Launch parameters found by tuning: those of an exported kernel stand in chunk.py."""


def tuned_launch(x, length):
    """None: there are no others."""
'''


def export_files(
    variant: str, preset: Preset | None = None, *, launch: Launch | None = None
) -> dict[str, str]:
    """Return file name -> text of `fla/ops/quasar/`: the five target files and what they import.

    `launch` goes before the preset's parameters.

    Raises:
        UsageError: no such variant.
    """
    if variant not in VARIANTS:
        raise UsageError(f"kernel variant {variant!r} is not shipped: use one of {', '.join(VARIANTS)}")
    chosen = VARIANTS[variant]
    parameters = launch or (preset or DEFAULT).launch
    files = {name: _to_fork(name) for name in (*TARGET_FILES, *_SUPPORT_FILES)}
    files["__init__.py"] = _INIT
    files["tuned.py"] = _TUNED
    chunk = files["chunk.py"] + chosen.entry
    constants = {
        "CHUNK_SIZE": chosen.chunk_size or parameters.chunk_size,
        "BLOCK_V": parameters.block_v,
        "NUM_WARPS": parameters.num_warps,
        "NUM_STAGES": parameters.num_stages,
        "PROGRAMS": parameters.programs,
    }
    for constant, value in constants.items():
        chunk = _with_constant(chunk, constant, value)
    files["chunk.py"] = chunk
    return files


def _to_fork(name: str) -> str:
    """Return one of our modules as it stands in a fork."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    if name != "chunk.py":
        return _OUR_IMPORT.sub(_fork_import, text)
    head, body = text.split("import torch\n\n", 1)
    return head + _REQUIRED_IMPORTS + _OUR_IMPORT.sub(_fork_import_not_required, body)


def _fork_import(line: re.Match[str]) -> str:
    """Say in a fork's terms what one of our import lines says."""
    module, names = line[1], line[2].split(", ")
    if module == "backend":
        rest = ", ".join(name for name in names if name not in _TRITON_LINES)
        triton = "".join(text for name, text in _TRITON_LINES.items() if name in names)
        return triton + (f"from fla.utils import {rest}\n" if rest else "")
    return f"from fla.ops.quasar.{module} import {line[2]}\n"


def _fork_import_not_required(line: re.Match[str]) -> str:
    """The same for chunk.py, where the required block has brought Triton and the utilities already."""
    return "" if line[1] == "backend" else _fork_import(line)


def _with_constant(text: str, name: str, value: int) -> str:
    changed, count = re.subn(rf"^{name} = \d+$", f"{name} = {value}", text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise ExportFailed(f"chunk.py has no line {name} = <number> to set")
    return changed


_PROOF: Final = """\
import sys
import torch
sys.path.insert(0, sys.argv[1])
from fla.ops.quasar.chunk import chunk_quasar
from fla.ops.quasar.fused_recurrent import fused_recurrent_quasar
sys.path.insert(1, sys.argv[2])
from kernels.reference import recurrence
device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(0)
full = [torch.randn(1, 100, 2, 32, generator=generator) for _ in range(3)]
beta = torch.tensor([0.3, 1.0])
packed = torch.tensor([0, 37, 37, 100])
for dtype, unit, borders in ((torch.float32, 1.0, None), (torch.bfloat16, 2.0**-8 / 2.0**-23, packed)):
    q, k, v = (x.to(dtype) for x in full)
    exact, _ = recurrence(q, k, v, beta, cu_seqlens=borders, dtype=torch.float64)
    for operator in (chunk_quasar, fused_recurrent_quasar):
        o, _ = operator(*(x.to(device) for x in (q, k, v, beta)), cu_seqlens=borders)
        print(float((o.cpu().double() - exact).norm() / exact.norm()) / unit)
"""
"""Prints relative errors in float32's unit: that of bfloat16 counts as many units of its own."""

PROOF_TIMEOUT_S: Final = 300.0
MAX_PROOF_ERROR: Final = 1e-5
_PROOF_ENVIRONMENT: Final = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES"),
    *("CC", "TRITON_CACHE_DIR", "TRITON_INTERPRET"),
)


def check_exported(repo_path: Path) -> float:
    """Run both operators of a fork's working tree on the pinned base, in float32 and bfloat16.

    Returns the largest relative error against the recurrence in float64, that of bfloat16 scaled to float32's
    precision. Trusts the files: they are ours. In a process of its own, on the GPU when there is one.

    Raises:
        ExportFailed: they are not there, do not run, or their error exceeds 1e-5.
    """
    if not (repo_path / TARGET_DIR).is_dir():
        raise ExportFailed(f"{repo_path} holds no {TARGET_DIR}: export the kernels first")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        write_fla_base(tree)
        shutil.copytree(repo_path / TARGET_DIR, tree / TARGET_DIR, dirs_exist_ok=True)
        printed = _run_proof(tree)
    error = max(float(line) for line in printed.split())
    if not error <= MAX_PROOF_ERROR:
        raise ExportFailed(f"the exported operators miss the reference: relative error {error:.1e}")
    return error


def _run_proof(tree: Path) -> str:
    environment = {name: os.environ[name] for name in _PROOF_ENVIRONMENT if name in os.environ}
    if shutil.which("nvidia-smi") is None:
        environment["TRITON_INTERPRET"] = "1"
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROOF, str(tree), str(Path(__file__).parents[1])],
            capture_output=True,
            text=True,
            timeout=PROOF_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExportFailed(f"the exported operators did not finish within {PROOF_TIMEOUT_S:.0f} s") from None
    if result.returncode != 0:
        raise ExportFailed(f"the exported operators do not run: {result.stderr.strip()[-2000:]}")
    return result.stdout
