"""The Triton kernels import and are compiled when a GPU first calls them."""

from wavalign_fast.ops import triton

assert triton.row_stats
