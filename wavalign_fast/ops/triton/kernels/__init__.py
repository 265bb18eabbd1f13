"""The Triton kernels; the modules of `wavalign_fast.ops.triton` launch them."""
