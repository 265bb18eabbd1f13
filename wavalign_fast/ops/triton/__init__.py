"""The GPU work in Triton: row kernels, scoring without logits, row compaction.

Importing this imports triton; `wavalign_fast` does so when the backend is first used.
"""

from wavalign_fast.ops.triton.rows import hybrid_rows_, row_gradient_, row_stats

__all__ = ["hybrid_rows_", "row_gradient_", "row_stats"]
