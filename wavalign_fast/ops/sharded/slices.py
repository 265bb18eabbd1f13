"""The products of gathered rows with the slice of this rank, by each kind of backend."""

from typing import Protocol

import torch
from torch import Tensor

from wavalign_fast.ops.chunked import kernels
from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS, ChunkOptions, Head, Needs, pitch_of
from wavalign_fast.ops.chunked.gradients import HeadGradients, states_gradient_
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.chunked.loop import kernel_bias, row_chunk, row_gradient
from wavalign_fast.ops.chunked.products import logits_product
from wavalign_fast.ops.cpu import CpuResults, cpu_gradients, cpu_results
from wavalign_fast.ops.options import LossOptions
from wavalign_fast.ops.sharded.exchange import GatheredRows


class Slice(Protocol):
    """What the exchange asks of a slice; it adds up the slice's own gradients."""

    def row_stats(self, rows: GatheredRows) -> RowStats:
        """Statistics over the slice, each [R]."""

    def gradient(self, rows: GatheredRows, stats: RowStats, grads: RowGrads) -> Tensor:
        """The slice's part of dH [R, H], in the dtype of the statistics: parts cancel, and rounded
        to the operands' dtype they would lose what one product keeps.

        Args:
            stats: ``WholeStats.here`` of the rows.
            grads: ``grads_here`` of them.
        """

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the slice and its bias; ``None`` for what is not needed."""


class EmptySlice:
    """A slice without ids, as the last of P ranks may have one if V < P²."""

    def __init__(self, head: Head, needs: Needs) -> None:
        self.head, self.needs = head, needs

    def row_stats(self, rows: GatheredRows) -> RowStats:
        zero = rows.states.new_zeros(len(rows.ids), dtype=self.head.stats_dtype)
        return RowStats(zero, zero, zero - torch.inf, zero)

    def gradient(self, rows: GatheredRows, stats: RowStats, grads: RowGrads) -> Tensor:
        return torch.zeros_like(rows.states, dtype=self.head.stats_dtype)

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = self.head.weight, self.head.bias
        return (
            torch.zeros_like(weight) if self.needs.weight else None,
            torch.zeros_like(bias) if self.needs.bias and bias is not None else None,
        )


class CpuSlice:
    """By the C++ kernels, all rows at once; they keep the probabilities for the gradient."""

    def __init__(self, head: Head, needs: Needs, options: LossOptions, *, learning: bool) -> None:
        self.head, self.needs, self.options, self.learning = head, needs, options, learning
        self.results: CpuResults | None = None
        self.found: tuple[Tensor, ...] | None = None

    def row_stats(self, rows: GatheredRows) -> RowStats:
        head = self.head._replace(hidden=rows.states, targets=rows.ids)
        self.results = cpu_results(
            head, self.options, learning=self.learning, want_prob_buffer=self.needs.weight
        )
        logp, entropy, _, (top, log_sum), *_ = self.results
        return RowStats(logp, entropy, top, log_sum)

    def gradient(self, rows: GatheredRows, stats: RowStats, grads: RowGrads) -> Tensor:
        assert self.results is not None
        results = self.results._replace(
            logp=stats.logp, entropy=stats.entropy, norm=torch.stack([stats.top, stats.log_sum])
        )
        self.results = None  # the gradient takes the memory of the probabilities
        head = self.head._replace(hidden=rows.states, targets=rows.ids)
        needs = self.needs._replace(hidden=True)
        wide = head.hidden.dtype != torch.float32
        self.found = cpu_gradients(head, grads, results, needs, wide=wide)
        return self.found[0]

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        if self.found is None:  # no rank has a live row
            return EmptySlice(self.head, self.needs).finish()
        _, weight, bias = self.found
        return weight if self.needs.weight else None, bias if self.needs.bias else None


class LoopSlice:
    """By a GEMM and the row kernels of a backend, as in the loop over chunks."""

    def __init__(
        self, head: Head, needs: Needs, options: ChunkOptions, *, rows: int, single: bool,
        rounded: bool,
    ) -> None:  # fmt: skip
        """Allocates the logits of a chunk of ``rows`` rows.

        Args:
            single, rounded: see ``HeadGradients``.
        """
        self.head, self.options = head, options
        self.backend = kernels.row_kernels_of(options.backend)
        self.of_head = HeadGradients(
            head, needs, self.backend.scale_, single=single, rounded=rounded
        )
        self.bias = kernel_bias(head)
        size = (-(-rows // PRODUCT_ROWS) * PRODUCT_ROWS, pitch_of(len(head.weight)))
        self.buffer = head.weight.new_empty(size, dtype=head.stats_dtype)
        self.slope = None if head.softcap is None else torch.empty_like(self.buffer)
        self.held: RowChunk | None = None

    def row_stats(self, rows: GatheredRows) -> RowStats:
        self.held = self._chunk(rows)
        return self.backend.row_stats(self.held)

    def gradient(self, rows: GatheredRows, stats: RowStats, grads: RowGrads) -> Tensor:
        chunk = self._chunk(rows) if self.held is None else self.held
        self.held = None  # its logits become the gradient
        weight = self.head.weight
        slope = self._slope_of(rows)
        found = row_gradient(self.backend, chunk, stats, grads, weight.dtype, slope)
        states = torch.empty_like(rows.states, dtype=self.head.stats_dtype)
        states_gradient_(states, found.dlogits, weight, found.power)
        self.of_head.add(rows.states, *found)
        return states

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        return self.of_head.finish()

    def _chunk(self, rows: GatheredRows) -> RowChunk:
        head, vocab = self.head, len(self.head.weight)
        out = self.buffer[:, :vocab]
        logits_product(rows.states, head.weight, out, same_bits=self.options.same_bits)
        logits = out[: len(rows.ids)]
        return row_chunk(logits, rows.ids, head, self.bias, self._slope_of(rows))

    def _slope_of(self, rows: GatheredRows) -> Tensor | None:
        return None if self.slope is None else self.slope[: len(rows.ids), : len(self.head.weight)]
