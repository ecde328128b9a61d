"""Compiles every kernel of the chunked operator for a GPU that need not be here; prints what they need.

`python -m tests.kernels.compile_all <compute capability> <bytes of shared memory> <dtype>:<D> ...`
"""

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import chunk, chunk_intra_token_parallel
from kernels.chunk import blocks, fitting_stages
from kernels.presets import DEFAULT

TYPES = {"bf16": (tl.bfloat16, tl.float16, 2), "fp32": (tl.float32, tl.float32, 4)}


def compile_for(
    capability: int, kernel: Any, pointers: str, constants: dict[str, Any], **options: Any
) -> int:
    """Compile a kernel, `name:type ...` being its arguments; returns its bytes of shared memory."""
    signature = dict(pair.split(":") for pair in pointers.split())
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature.get(name, "").startswith("*")
    }
    source = ASTSource(
        fn=kernel,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs=aligned,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return int(compiled.metadata.shared)


def compile_shape(capability: int, limit: int, dtype: str, dim: int) -> dict[str, int]:
    """Compile the four kernels as the operator launches them."""
    launch = DEFAULT.launch
    operand, inner, size = TYPES[dtype]
    chunk_size = launch.chunk_size if dim <= 128 else min(launch.chunk_size, 32)
    block_d, block_v, warps = blocks(dim, size, launch)
    shape = {"H": 8, "D": dim, "BD": block_d}
    sums = {"OPERAND": operand, "PRECISION": "tf32x3"}
    tile = {**shape, "BV": block_v, "C": chunk_size, **sums}
    x = f"*{dtype}"

    def stages(columns: int, state: int) -> int:
        return fitting_stages(limit, launch.num_stages, chunk_size, columns, state, size)

    return {
        "solve": compile_for(
            capability,
            chunk_intra_token_parallel._intra_kernel,
            f"k:{x} beta:*fp32 inverse:{x} table:*i64 parts:i32",
            {
                "H": 8,
                "D": dim,
                "BK": min(64, block_d),
                "C": chunk_size,
                "G": 2 if chunk_size == 16 else 1,
                "ROUNDS": 8,
                "INNER": inner,
                **sums,
            },
            num_warps=1,
            num_stages=2,
        ),
        "fold": compile_for(
            capability,
            chunk._fold_kernel,
            f"k:{x} v:{x} inverse:{x} transition:*fp32 addition:*fp32 table:*i64",
            tile,
            num_warps=warps,
            num_stages=stages(block_d + block_v, 2 * block_d * block_v),
        ),
        "scan": compile_for(
            capability,
            chunk._scan_kernel,
            "transition:*fp32 addition:*fp32 entering:*fp32 initial:*fp32 firsts:*i64",
            {
                **shape,
                "BV": 16,
                "BK": block_d if block_d <= 128 else 32,
                "HAS_INITIAL": True,
                "PRECISION": "tf32x3",
            },
            num_warps=4,
            num_stages=3 if block_d <= 64 else 1,
        ),
        "output": compile_for(
            capability,
            chunk._output_kernel,
            f"q:{x} k:{x} v:{x} inverse:{x} o:{x} entering:*fp32 final:*fp32 table:*i64",
            {**tile, "IS_SPLIT": True, "HAS_ENTERING": True, "HAS_FINAL": True},
            num_warps=warps,
            num_stages=stages(2 * block_d + block_v, block_d * block_v),
        ),
    }


if __name__ == "__main__":
    given = (int(sys.argv[1]), int(sys.argv[2]))
    shapes = [entry.split(":") for entry in sys.argv[3:]]
    print(json.dumps({f"{dtype}:{dim}": compile_shape(*given, dtype, int(dim)) for dtype, dim in shapes}))
