"""A gradient times a factor that only the device knows; no host read."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("size",), do_not_specialize_on_alignment=("factor",))
def scale_kernel(gradient, factor, size, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1.0:  # else, as in almost every backward pass, the gradient is not even read
        program, programs = tl.program_id(0), tl.num_programs(0)
        lanes = tl.arange(0, BLOCK)
        # Whole blocks carry no mask, which would cut every access to one element.
        whole = size // BLOCK
        for block in tl.range(program, whole, programs):
            place = gradient + tl.cast(block, tl.int64) * BLOCK + lanes
            values = tl.load(place).to(tl.float32) * by
            tl.store(place, values.to(gradient.dtype.element_ty))
        if program == programs - 1:
            last = tl.cast(whole, tl.int64) * BLOCK + lanes
            values = tl.load(gradient + last, mask=last < size, other=0.0).to(tl.float32) * by
            tl.store(gradient + last, values.to(gradient.dtype.element_ty), mask=last < size)
