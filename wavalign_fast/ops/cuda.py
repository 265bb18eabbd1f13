"""The CUDA kernels: whether they can be used, and the functions that call them.

The row kernels implement ``chunked.interface.RowKernels``. Every function enqueues on the current
stream of its tensors' device and returns without a host sync. Tensors are contiguous, except that
the rows of a chunk's logits may have a stride that is a multiple of 16 bytes.
"""

import ctypes
import functools
import math
import re
from typing import Any

import torch

from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.chunked.row_ops import operand_view
from wavalign_fast.ops.extension import load_module
from wavalign_fast.ops.token_math import TokenTable

NAMESPACE = "wavalign_fast"


# Loaded once, at import: a traced call must not import a module.
EXTENSION = load_module("_C_cuda", "CUDA", "nvcc")
OPS: Any = getattr(torch.ops, NAMESPACE)


def status(device: torch.device | None = None) -> str | None:
    """``None`` if the kernels run on ``device``, by default the current one; else why not."""
    if isinstance(EXTENSION, str):
        return EXTENSION
    if not torch.cuda.is_available():
        return "there is no GPU that this torch sees"
    index = None if device is None else device.index
    return _device_status(torch.cuda.current_device() if index is None else index)


def serves(tensor: torch.Tensor) -> bool:
    """Whether the tensor is float32 and on a GPU that these kernels were built for."""
    if not tensor.is_cuda or tensor.dtype != torch.float32:
        return False
    return status(tensor.device) is None


@functools.cache
def _device_status(index: int) -> str | None:
    assert not isinstance(EXTENSION, str)
    built, capability = EXTENSION["archs"], torch.cuda.get_device_capability(index)
    if not runs_on(built, capability):
        return (
            f"the CUDA kernels were built for {built}, this GPU is of architecture "
            f"{capability[0]}{capability[1]}: install again with WAVALIGN_CUDA_ARCHS"
        )
    # A driver runs code of any minor release of its own major release.
    driver = _driver_release()
    if driver < int(EXTENSION["cuda"].partition(".")[0]):
        return (
            f"the CUDA kernels were built with CUDA {EXTENSION['cuda']}, this driver serves up to "
            f"CUDA {driver}: update it, or install again with an older nvcc"
        )
    return None


def _driver_release() -> int:
    """The newest major release of CUDA that the driver supports; torch does not report it."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000


def runs_on(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``archs``, as in ``80;90a;100f;120+PTX``, runs on a GPU.

    Code, with or without an ``f``, also runs on later minor versions of its major version; code
    with an ``a`` runs on its own version only. The driver compiles PTX for any later GPU.
    """
    for major, minor, letter, ptx in re.findall(r"(\d+)(\d)([af]?)(\+PTX)?", archs):
        built = (int(major), int(minor))
        if capability == built or (ptx and capability > built):
            return True
        if letter != "a" and capability[0] == built[0] and capability[1] > built[1]:
            return True
    return False


def row_stats(chunk: RowChunk) -> RowStats:
    """See ``row_ops.row_stats``; the logits are float32 or bfloat16."""
    return RowStats(*OPS.row_stats(*chunk))


def row_gradient_(
    chunk: RowChunk, stats: RowStats, grads: RowGrads, *, out_dtype: torch.dtype
) -> torch.Tensor:
    """See ``row_ops.row_gradient_``."""
    logits, targets, bias, scale, ignore_index = chunk
    OPS.row_gradient_(logits, targets, bias, *stats, *grads, scale, ignore_index, out_dtype)
    return operand_view(logits, out_dtype)


def hybrid_rows_(
    chunk: RowChunk,
    table: TokenTable,
    *,
    clip: tuple[float, float] | None,
    out_dtype: torch.dtype,
) -> tuple[RowStats, torch.Tensor, torch.Tensor]:
    """See ``row_ops.hybrid_rows_``."""
    logits, targets, bias, scale, ignore_index = chunk
    low, high = clip or (-math.inf, math.inf)
    *stats, g = OPS.hybrid_rows_(
        logits, targets, bias, *table, scale, ignore_index, low, high, out_dtype
    )
    return RowStats(*stats), g, operand_view(logits, out_dtype)


def group_statistics(
    rewards: torch.Tensor,
    *,
    eps: float,
    sample_std: bool,
    lambda_max: float,
    slope: float,
    threshold: float,
    variance_scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``group_advantages`` of float32 rewards [B, G], and the sums [6] that λ is computed from.

    The first five are sums over the groups that have a reward: of λ_raw, its two gates, the largest
    reward and the variance. The sixth is the number of such groups. The sums of ranks may be added.
    """
    return OPS.group_statistics(
        rewards, eps, sample_std, lambda_max, slope, threshold, variance_scale
    )


def group_advantages(rewards: torch.Tensor, *, eps: float, sample_std: bool) -> torch.Tensor:
    """The advantages of ``group_statistics``, without the sums for λ."""
    advantages, _ = group_statistics(
        rewards,
        eps=eps,
        sample_std=sample_std,
        lambda_max=0.0,
        slope=0.0,
        threshold=0.0,
        variance_scale=1.0,
    )
    return advantages


def mix(
    sums: torch.Tensor,
    previous: torch.Tensor,
    has_previous: torch.Tensor,
    *,
    lambda_max: float,
    ema: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``MixingGate``'s λ [1] after the step with these sums, and the means [5] of the sums.

    Args:
        previous: λ of the step before, [1].
        has_previous: bool [1], whether there was one; if not, ``previous`` is ignored.
    """
    return OPS.mix(sums, previous, has_previous, lambda_max, ema)


def compact_rows(live: torch.Tensor, *, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``row_ops.compact_rows``."""
    return OPS.compact_rows(live, capacity)


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """See ``row_ops.gather_rows``."""
    return OPS.gather_rows(source, index)


def scatter_rows_(rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """See ``row_ops.scatter_rows_``."""
    OPS.scatter_rows_(rows, index, target)
    return target


def scale_(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """See ``row_ops.scale_``. Where the factor is exactly 1 the kernel writes nothing."""
    OPS.scale_(gradient, factor.to(torch.float32))
    return gradient


def register_fakes(namespace: str) -> None:
    """Registers the fake kernels of a namespace, which give torch the shapes of the results."""

    def fake(name: str) -> Any:
        return torch.library.register_fake(f"{namespace}::{name}")

    def per_row(logits: torch.Tensor, results: int) -> tuple[torch.Tensor, ...]:
        size = logits.shape[:1]
        return tuple(logits.new_empty(size, dtype=torch.float32) for _ in range(results))

    fake("row_stats")(lambda logits, *rest: per_row(logits, 4))
    fake("row_gradient_")(lambda *args: None)
    fake("hybrid_rows_")(lambda logits, *rest: per_row(logits, 5))
    fake("group_statistics")(
        lambda rewards, *rest: (torch.empty_like(rewards), rewards.new_empty(6))
    )
    fake("mix")(lambda sums, *rest: (sums.new_empty(1), sums.new_empty(5)))
    fake("compact_rows")(
        lambda live, capacity: tuple(live.new_empty(n, dtype=torch.int64) for n in (capacity, 1))
    )
    fake("gather_rows")(lambda source, index: source.new_empty((index.shape[0], source.shape[1])))
    fake("scatter_rows_")(lambda *args: None)
    fake("scale_")(lambda *args: None)


if not isinstance(EXTENSION, str):
    register_fakes(NAMESPACE)
