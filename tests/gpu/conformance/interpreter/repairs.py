"""Repairs what Triton's interpreter gets wrong or leaves open.

The interpreter holds bfloat16 as 16-bit integers and adds and multiplies those, so results are
silently wrong. Here products and conversions of bfloat16 are right. Any other arithmetic on it is
an error, so that a kernel converts before it computes, as it should on a GPU.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

TF32_MASK = np.uint32(0xFFFFE000)
"""Keeps the 10 bits of mantissa that a tensor core reads of an fp32 operand."""


def install() -> None:
    """Repairs the interpreter for the rest of the process."""
    InterpreterBuilder.create_dot = _dot
    InterpreterBuilder.cast_impl = _cast(InterpreterBuilder.cast_impl)
    InterpreterBuilder.create_fp_to_fp = _cast_with_mode(InterpreterBuilder.create_fp_to_fp)
    for name in ("binary_op", "unary_op", "create_fma", "create_fabs"):
        setattr(InterpreterBuilder, name, _without_bf16(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.binary_op = _comparing_to_int1(InterpreterBuilder.binary_op)
    interpreter._patch_lang_tensor = _index_of_one_element(interpreter._patch_lang_tensor)
    # Arguments are host memory already. To copy each storage onto itself, as for a GPU, would
    # touch every page of a sparse one.
    interpreter.GridExecutor._restore_args_dev = lambda *_: None
    # Memory that is not written stays NaN, or the largest integer.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def as_float32(handle: TensorHandle) -> np.ndarray:
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data.astype(np.float32)


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounds to nearest, ties to even; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def as_tf32(values: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(values).view(np.uint32) & TF32_MASK).view(np.float32)


def _dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: int) -> TensorHandle:
    left, right = as_float32(a), as_float32(b)
    if a.dtype.scalar == tl.float32 and str(precision).endswith("TF32"):
        left, right = as_tf32(left), as_tf32(right)
    return TensorHandle(np.matmul(left, right) + d.data, tl.float32)


def _cast(original: Any) -> Any:
    def cast(self: Any, source: Any, kind: Any) -> TensorHandle:
        before, after = source.dtype.scalar, kind.scalar
        if before == after or tl.bfloat16 not in (before, after):
            return original(self, source, kind)
        values = as_float32(source)
        if after == tl.bfloat16:
            return TensorHandle(as_bfloat16(values), after)
        return original(self, TensorHandle(values, tl.float32), kind)

    return cast


def _cast_with_mode(original: Any) -> Any:
    def cast(self: Any, source: Any, kind: Any, mode: Any) -> TensorHandle:
        if tl.bfloat16 in (source.dtype.scalar, kind.scalar):
            raise TypeError("a rounding mode for bfloat16 is not emulated")
        return original(self, source, kind, mode)

    return cast


def _without_bf16(original: Any) -> Any:
    def operation(self: Any, *operands: Any) -> TensorHandle:
        for operand in operands:
            if isinstance(operand, TensorHandle) and operand.dtype.scalar == tl.bfloat16:
                raise TypeError("arithmetic on bfloat16: convert to float32 first")
        return original(self, *operands)

    return operation


def _comparing_to_int1(original: Any) -> Any:
    """Types the result of a comparison as int1, where Triton keeps the type of its operands.

    Broadcasting then turns it into integers, and Triton 3.9 refuses a mask of integers.
    """

    def operation(self: Any, *operands: Any) -> TensorHandle:
        result = original(self, *operands)
        return TensorHandle(result.data, tl.int1) if result.data.dtype == np.bool_ else result

    return operation


def _index_of_one_element(original: Any) -> Any:
    """Triton 3.6 converts an array of one element to an int, which NumPy refuses from 2.5 on."""

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch
