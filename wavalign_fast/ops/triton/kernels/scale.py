"""Multiplies a gradient by a factor that is known only on the device, without a host sync."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("size",), do_not_specialize_on_alignment=("factor",))
def scale_kernel(gradient, factor, size, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1.0:  # the usual factor is 1: then the gradient is not even read
        program, programs = tl.program_id(0), tl.num_programs(0)
        lanes = tl.arange(0, BLOCK)
        # Full blocks have no mask: it would split every access into single elements.
        whole = size // BLOCK
        for block in tl.range(program, whole, programs):
            place = gradient + tl.cast(block, tl.int64) * BLOCK + lanes
            values = tl.load(place).to(tl.float32) * by
            tl.store(place, values.to(gradient.dtype.element_ty))
        if program == programs - 1:
            last = tl.cast(whole, tl.int64) * BLOCK + lanes
            values = tl.load(gradient + last, mask=last < size, other=0.0).to(tl.float32) * by
            tl.store(gradient + last, values.to(gradient.dtype.element_ty), mask=last < size)
