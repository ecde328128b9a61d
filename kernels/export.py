"""Write the shipped kernels as the files of a fork: one source, two homes.

The kernel modules are the truth; a small, fixed set of textual rules moves their imports from `kernels.` to
`fla.ops.quasar.`, adds the import block that the subnet requires, and sets the launch parameters.
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
from kernels.presets import DEFAULT, Preset
from protocol.forks import TARGET_DIR, TARGET_FILES

_BACKEND_IMPORT: Final = "from kernels.backend import tl, triton\n"
_TRITON_IMPORTS: Final = "import triton\nimport triton.language as tl\n"
_SUPPORT_FILES: Final = ("shapes.py",)

_REQUIRED_IMPORTS: Final = """\
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from fla.ops.quasar.forward_substitution import forward_substitution_kernel
from fla.ops.utils.index import prepare_chunk_indices
from fla.utils import (
    IS_AMD,
    autocast_custom_bwd,
    autocast_custom_fwd,
    autotune_cache_kwargs,
    check_shared_mem,
    input_guard,
)
"""

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


class ExportFailed(RuntimeError):
    """The exported files do not run, or do not agree with the reference."""


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
        Variant(
            name="chunk16",
            summary="the same with chunks of 16 tokens: more steps, less work in each",
            chunk_size=16,
        ),
        Variant(name="recurrent", summary="token by token", entry=_RECURRENT_ENTRY),
    )
}


def export_files(variant: str, preset: Preset | None = None) -> dict[str, str]:
    """Return file name -> text of `fla/ops/quasar/`: the five target files and what they import.

    Raises:
        KeyError: no such variant.
    """
    chosen = VARIANTS[variant]
    parameters = preset or DEFAULT
    files = {name: _to_fork(_source(name)) for name in (*TARGET_FILES, *_SUPPORT_FILES)}
    files["__init__.py"] = _INIT
    chunk = _with_required_imports(files["chunk.py"]) + chosen.entry
    chunk = _with_constant(chunk, "CHUNK_SIZE", chosen.chunk_size or parameters.chunk_size)
    chunk = _with_constant(chunk, "NUM_WARPS", parameters.num_warps)
    files["chunk.py"] = _with_constant(chunk, "NUM_STAGES", parameters.num_stages)
    return files


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _to_fork(text: str) -> str:
    return text.replace(_BACKEND_IMPORT, _TRITON_IMPORTS).replace("from kernels.", "from fla.ops.quasar.")


def _with_required_imports(text: str) -> str:
    return text.replace(f"import torch\n\n{_TRITON_IMPORTS}", _REQUIRED_IMPORTS, 1)


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
q, k, v = (torch.randn(1, 150, 2, 32, generator=generator) for _ in range(3))
beta = torch.tensor([0.3, 1.0])
exact, _ = recurrence(q, k, v, beta, dtype=torch.float64)
for operator in (chunk_quasar, fused_recurrent_quasar):
    o, _ = operator(*(x.to(device) for x in (q, k, v, beta)))
    print(float((o.cpu().double() - exact).norm() / exact.norm()))
"""

PROOF_TIMEOUT_S: Final = 300.0
MAX_PROOF_ERROR: Final = 1e-4


def check_exported(repo_path: Path) -> float:
    """Run the operators of a fork's working tree on the pinned base; return the larger relative error.

    Trusts the files: they are ours. In a process of its own, on the GPU when there is one.

    Raises:
        ExportFailed: they do not run, or their error exceeds 1e-4.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        write_fla_base(tree)
        shutil.copytree(repo_path / TARGET_DIR, tree / TARGET_DIR, dirs_exist_ok=True)
        environment = dict(os.environ)
        if shutil.which("nvidia-smi") is None:
            environment["TRITON_INTERPRET"] = "1"
        result = subprocess.run(
            [sys.executable, "-c", _PROOF, str(tree), str(Path(__file__).parents[1])],
            capture_output=True,
            text=True,
            timeout=PROOF_TIMEOUT_S,
            env=environment,
            check=False,
        )
    if result.returncode != 0:
        raise ExportFailed(f"the exported operators do not run: {result.stderr.strip()[-2000:]}")
    error = max(float(line) for line in result.stdout.split())
    if not error <= MAX_PROOF_ERROR:
        raise ExportFailed(f"the exported operators miss the reference: relative error {error:.1e}")
    return error
