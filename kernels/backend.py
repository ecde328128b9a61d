"""The only place of this package that imports Triton, and what its interpreter needs to be told.

In the interpreter a bfloat16 dot is silently wrong and an autotuner with several configurations has no
driver to ask: the kernels therefore upcast every operand to float32 and take one configuration from the host.
"""

import triton
import triton.language as tl

INTERPRET: bool = bool(triton.knobs.runtime.interpret)
"""True when TRITON_INTERPRET=1 was set before Triton was imported: kernels run on the CPU."""

__all__ = ["INTERPRET", "tl", "triton"]
