"""The row kernels of each backend, imported on first use."""

from wavalign_fast.ops.chunked.interface import RowKernels


def row_kernels_of(backend: str) -> RowKernels:
    """The module with the row kernels of ``cuda``, ``triton`` or ``definition``.

    Raises:
        ValueError: another backend, which has no row kernels.
    """
    if backend == "cuda":
        from wavalign_fast.ops import cuda

        return cuda
    if backend == "triton":
        from wavalign_fast.ops import triton

        return triton
    if backend == "definition":
        from wavalign_fast.ops.chunked import row_ops

        return row_ops
    raise ValueError(f"backend: got {backend!r}, want cuda, triton or definition")
