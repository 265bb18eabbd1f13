"""The programs that run on the GPU; `wavalign_fast.ops.triton` launches them."""
