"""Compiles every kernel of the operator and of a decoding step for a GPU that need not be here.

Prints the shared memory that they need.

`python -m tests.kernels.compile_all <compute capability> <bytes of shared memory> <dtype>:<D> ...`
"""

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import chunk, chunk_intra_token_parallel, decode_attention, decode_linear
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


def compile_decoding(capability: int) -> dict[str, int]:
    """Compile a decoding step's kernels in float16, as a model of the reference's shape needs them."""
    half = "*fp16"
    vectors = " ".join(f"{name}:{half}" for name in ("matrix_0", "matrix_1", "matrix_2", "bias_0", "bias_1"))
    tile = decode_linear.tile_for(1152, 896)
    shape = {"K": 896, "BK": tile.columns, "ROWS": tile.rows}
    return {
        "linear": compile_for(
            capability,
            decode_linear._linear_kernel,
            f"x:{half} scale:{half} eps:fp32 {vectors} bias_2:{half} residual:{half} o:{half} "
            "rows_0:i32 rows_1:i32 rows_2:i32",
            {**shape, "NORM": True, "BIAS": True, "RESIDUAL": True},
            num_warps=tile.warps,
        ),
        "gated": compile_for(
            capability,
            decode_linear._gated_kernel,
            f"x:{half} scale:{half} eps:fp32 gate:{half} up:{half} o:{half} rows:i32",
            shape,
            num_warps=tile.warps,
        ),
        "attention": compile_for(
            capability,
            decode_attention._attention_kernel,
            f"qkv:{half} cos:{half} sin:{half} keys:{half} values:{half} position:*i64 o:{half} "
            "scaling:fp32 slots:i32",
            {
                "H": 14,
                "GROUP": 7,
                "D": 64,
                "BD": 64,
                "BLOCK": decode_attention.BLOCK_NUMBERS // 64,
            },
            num_warps=decode_attention.NUM_WARPS,
        ),
    }


if __name__ == "__main__":
    given = (int(sys.argv[1]), int(sys.argv[2]))
    shapes = [entry.split(":") for entry in sys.argv[3:]]
    found = {f"{dtype}:{dim}": compile_shape(*given, dtype, int(dim)) for dtype, dim in shapes}
    print(json.dumps({**found, "decoding": compile_decoding(given[0])}))
