"""The launch functions of csrc/cuda/kernels.h on the emulated device, with tensors."""

import ctypes
import math
from ctypes import c_bool, c_double, c_float, c_int32, c_int64, c_void_p

import torch

from tools.cuda_on_cpu.cases import Result
from tools.cuda_on_cpu.launcher import Launcher, pointers, structure
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.chunked.row_ops import operand_view
from wavalign_fast.ops.token_math import TokenTable

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

Chunk = structure(
    "Chunk",
    logits=c_void_p,
    **dict.fromkeys(("rows", "vocab", "pitch"), c_int64),
    dtype=c_int32,
    **pointers("targets", "bias"),
    scale=c_float,
    ignore_index=c_int64,
)
StatsOut = structure("StatsOut", **pointers("top", "log_sum", "logp", "entropy"))
RowStatsParams = structure("RowStatsParams", chunk=Chunk, out=StatsOut)
RowGradientParams = structure(
    "RowGradientParams",
    chunk=Chunk,
    out_dtype=c_int32,
    **pointers("top", "log_sum", "logp", "entropy", "grad_logp", "grad_entropy", "grad_lse"),
)
Table = structure(
    "Table",
    **pointers("policy_coef", "advantage", "kl_coef", "anchor_coef", "old_logp", "ref_logp"),
)
HybridParams = structure(
    "HybridParams",
    chunk=Chunk,
    out_dtype=c_int32,
    table=Table,
    clip_low=c_float,
    clip_high=c_float,
    out=StatsOut,
    grad_logp=c_void_p,
)
PlanQuery = structure(
    "PlanQuery",
    **dict.fromkeys(("vocab", "shared_limit"), c_int64),
    **dict.fromkeys(("arch", "dtype", "strategy", "cluster"), c_int32),
    shared_bytes=c_int64,
)
GroupParams = structure(
    "GroupParams",
    rewards=c_void_p,
    **dict.fromkeys(("groups", "size"), c_int64),
    eps=c_double,
    sample_std=c_bool,
    **dict.fromkeys(("lambda_max", "slope", "threshold", "variance_scale"), c_double),
    **pointers("advantages", "sums"),
)
MixParams = structure(
    "MixParams",
    **pointers("sums", "previous", "has_previous"),
    **dict.fromkeys(("lambda_max", "ema"), c_double),
    **pointers("rl_weight", "parts"),
)
CompactParams = structure(
    "CompactParams",
    live=c_void_p,
    **dict.fromkeys(("size", "capacity"), c_int64),
    **pointers("index", "count", "workspace"),
)
WorkspaceParams = structure("WorkspaceParams", value=c_int64)
GatherParams = structure(
    "GatherParams",
    source=c_void_p,
    **dict.fromkeys(("size", "width"), c_int64),
    item_bytes=c_int32,
    index=c_void_p,
    count=c_int64,
    rows=c_void_p,
)
ScatterParams = structure(
    "ScatterParams",
    rows=c_void_p,
    rows_dtype=c_int32,
    index=c_void_p,
    **dict.fromkeys(("count", "width"), c_int64),
    target=c_void_p,
    target_dtype=c_int32,
    size=c_int64,
)
ScaleParams = structure(
    "ScaleParams", gradient=c_void_p, dtype=c_int32, size=c_int64, factor=c_void_p
)
TokenParams = structure(
    "TokenParams",
    columns=c_void_p,
    count=c_int64,
    **dict.fromkeys(("clip_low", "clip_high"), c_double),
    **dict.fromkeys(("has_old", "has_ref"), c_int32),
)


class Kernels(Launcher):
    """The row kernels with the signatures of their definition, in one variant, on one device.

    Logits are [R, V] views of [R, pitch]; they are left as they are, results are copies.
    """

    def row_stats(self, chunk: RowChunk) -> RowStats:
        params = RowStatsParams(chunk=_chunk(chunk))
        buffers = _chunk_buffers(chunk) | _empty_stats(len(chunk.targets))
        result = self.launch("row_stats", "row_stats", params, buffers)
        return _stats(result)

    def row_gradient_(
        self, chunk: RowChunk, stats: RowStats, grads: RowGrads, *, out_dtype: torch.dtype
    ) -> torch.Tensor:
        params = RowGradientParams(chunk=_chunk(chunk), out_dtype=DTYPES[out_dtype])
        buffers = _chunk_buffers(chunk) | stats._asdict()
        buffers |= {f"grad_{name}": grad for name, grad in grads._asdict().items()}
        result = self.launch("row_gradient", "row_gradient", params, buffers)
        return operand_view(_viewed(result, chunk.logits), out_dtype)

    def hybrid_rows_(
        self,
        chunk: RowChunk,
        table: TokenTable,
        *,
        clip: tuple[float, float] | None,
        out_dtype: torch.dtype,
    ) -> tuple[RowStats, torch.Tensor, torch.Tensor]:
        low, high = clip or (-math.inf, math.inf)
        params = HybridParams(
            chunk=_chunk(chunk), out_dtype=DTYPES[out_dtype], clip_low=low, clip_high=high
        )
        rows = len(chunk.targets)
        buffers = _chunk_buffers(chunk) | _empty_stats(rows)
        buffers |= {f"table.{name}": column for name, column in table._asdict().items()}
        buffers["grad_logp"] = torch.full((rows,), math.nan)
        result = self.launch("hybrid_rows", "hybrid_rows", params, buffers)
        dlogits = operand_view(_viewed(result, chunk.logits), out_dtype)
        return _stats(result), result.buffers["grad_logp"], dlogits


def _chunk(chunk: RowChunk) -> ctypes.Structure:
    logits = chunk.logits
    return Chunk(
        rows=logits.shape[0],
        vocab=logits.shape[1],
        pitch=logits.stride(0),
        dtype=DTYPES[logits.dtype],
        scale=chunk.scale,
        ignore_index=chunk.ignore_index,
    )


def _storage(logits: torch.Tensor) -> torch.Tensor:
    """The rows' whole storage, including the garbage between them."""
    size = logits.untyped_storage().nbytes() // logits.element_size()
    return logits.as_strided((size,), (1,))


def _chunk_buffers(chunk: RowChunk) -> dict[str, torch.Tensor | None]:
    return {
        "chunk.logits": _storage(chunk.logits),
        "chunk.targets": chunk.targets,
        "chunk.bias": chunk.bias,
    }


def _empty_stats(rows: int) -> dict[str, torch.Tensor]:
    """Filled with a value that no kernel writes, so that an unwritten output shows."""
    return {f"out.{name}": torch.full((rows,), -12345.0) for name in RowStats._fields}


def _stats(result: Result) -> RowStats:
    return RowStats(*(result.buffers[f"out.{name}"] for name in RowStats._fields))


def _viewed(result: Result, logits: torch.Tensor) -> torch.Tensor:
    return result.buffers["chunk.logits"].as_strided(logits.shape, logits.stride())


def on_strategy(kernels: Kernels, strategy: str, vocab: int, dtype: torch.dtype) -> Kernels:
    """A device on which the hybrid kernel uses this strategy, as far as so few logits allow."""
    if strategy == "held":
        return kernels
    if strategy == "streamed":
        return kernels.on(arch=80, shared_bytes=600)
    units = (vocab + 7) // 8
    return kernels.on(shared_bytes=(units + 7) // 8 * 8 * dtype.itemsize + 512)
