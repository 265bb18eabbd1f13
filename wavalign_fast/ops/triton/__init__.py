"""The Triton backend: row kernels, scoring without logits, row compaction, scaled gradients.

Importing this imports triton. `wavalign_fast` does so only when the backend is first used.
"""

from wavalign_fast.ops.triton.compaction import compact_rows, gather_rows, scatter_rows_
from wavalign_fast.ops.triton.row_ops import hybrid_rows_, row_gradient_, row_stats
from wavalign_fast.ops.triton.scale import scale_
from wavalign_fast.ops.triton.scorer import score

__all__ = [
    "compact_rows",
    "gather_rows",
    "hybrid_rows_",
    "row_gradient_",
    "row_stats",
    "scale_",
    "scatter_rows_",
    "score",
]
