"""dH, dW and the bias's gradient, summed over the chunks of a call.

Sums have the dtype of the statistics, and a gradient is rounded to its operand's dtype once, at the
end. Otherwise a GEMM that splits a long sum (split-K) would add parts that it has rounded to
bfloat16.

float16 cannot hold the gradients of logits: in a long batch with a large vocabulary g p is below
its smallest number. So each row of them is scaled by a power of two of its own. The row kernels get
it as a factor of the derivatives, and it is divided out in fp32, for dH row by row. dW is a sum
over rows and needs one power for all of them, the lowest: the hidden states of the other rows are
scaled down to it. The digits that this loses are small beside the row with the lowest power.
"""

from collections.abc import Callable

import torch

from wavalign_fast.ops.chunked.chunks import ChunkOptions, Chunks, Head, Needs
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.chunked.products import add_product, product

DIRECT_FROM = 2**24
"""From this many elements of a head on, the GEMM itself rounds the head's gradient. Its output then
fills a GPU, so there is no reason to split its short sums."""

FLOAT16_TOP = 14
"""Exponent that a row's largest gradient is scaled to; that of float16's largest number is 15."""


class HeadGradients:
    """dW and the bias's gradient, from the states and ``dlogits`` of a chunk at a time."""

    def __init__(
        self,
        head: Head,
        needs: Needs,
        scale_: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        single: bool,
        rounded: bool = True,
    ) -> None:
        """Allocates nothing before the first chunk.

        Args:
            scale_: the backend's.
            single: whether there is one chunk only.
            rounded: whether ``finish`` rounds the gradients of float16 operands. If not they stay
                in fp32, until a factor has brought them into range.
        """
        self.head, self.needs, self.scale_ = head, needs, scale_
        self.wide, own = head.stats_dtype, head.weight.dtype
        self.keep = own == torch.float16 and not rounded
        enough = head.weight.numel() >= DIRECT_FROM
        self.direct = single and enough and own not in (self.wide, torch.float16)
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        self.power: torch.Tensor | None = None
        """For float16: the power of two, 0-d, that ``weight`` includes."""

    def add(
        self,
        states: torch.Tensor,
        dlogits: torch.Tensor,
        power: torch.Tensor | None = None,
        capped: torch.Tensor | None = None,
    ) -> None:
        """Adds a chunk of R rows.

        Args:
            power: [R], the power of two in each row of ``dlogits``.
            capped: [R, V], the derivatives by the logits behind a soft cap, in the dtype of the
                statistics; a bias outside the cap has their sum for its gradient.
        """
        lower, ratio = None, None
        if power is not None:
            lower = power.min() if self.power is None else torch.minimum(self.power, power.min())
            ratio = (lower / power).to(dlogits.dtype)
        if self.needs.weight:
            self._add_weight(states, dlogits, lower, ratio)
        if self.needs.bias and capped is not None and not self.head.bias_inside:
            self._add_bias(capped if power is None else capped / power.unsqueeze(1), None, None)
        elif self.needs.bias:
            self._add_bias(dlogits, lower, ratio)
        self.power = lower

    def _add_weight(
        self,
        states: torch.Tensor,
        dlogits: torch.Tensor,
        lower: torch.Tensor | None,
        ratio: torch.Tensor | None,
    ) -> None:
        if self.direct:
            self.weight = torch.mm(dlogits.T, states)
            return
        if ratio is not None:
            states = states * ratio.unsqueeze(1)
        if self.weight is None:  # the first chunk writes: there is nothing to add to
            self.weight = torch.empty_like(self.head.weight, dtype=self.wide)
            product(dlogits.T, states, self.weight)
            return
        if lower is not None and self.power is not None:
            self.scale_(self.weight, lower / self.power)
        add_product(self.weight, dlogits.T, states)

    def _add_bias(
        self, dlogits: torch.Tensor, lower: torch.Tensor | None, ratio: torch.Tensor | None
    ) -> None:
        if ratio is None or lower is None:
            found = dlogits.sum(0, dtype=self.wide)
        else:
            found = dlogits.new_empty((1, dlogits.shape[1]), dtype=self.wide)
            product(ratio.unsqueeze(0), dlogits, found)
            found = found[0] / lower
        # dlogits includes 1 / temperature, which does not apply to a bias after it.
        if not self.head.bias_inside:
            found = found * self.head.temperature
        self.bias = found if self.bias is None else self.bias + found

    def finish(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The gradients to weight and bias; ``None`` for what is not needed."""
        head, (_, need_weight, need_bias) = self.head, self.needs
        weight, bias = self.weight, self.bias
        # No row has a gradient.
        if need_weight and weight is None:
            weight = torch.zeros_like(head.weight)
        elif weight is not None and self.power is not None:
            weight /= self.power
        if need_bias and bias is None:
            bias = head.weight.new_zeros(head.weight.shape[0])
        of_weight, of_bias = head.weight.dtype, None if head.bias is None else head.bias.dtype
        if self.keep:
            of_weight = of_bias = self.wide
        weight = None if weight is None else weight.to(of_weight)
        bias = None if bias is None or of_bias is None else bias.to(of_bias)
        return weight, bias


class ChunkGradients:
    """The gradients of a call, from a chunk's ``dlogits`` at a time."""

    def __init__(
        self,
        head: Head,
        needs: Needs,
        options: ChunkOptions,
        chunks: Chunks,
        scale_: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        rounded: bool = True,
    ) -> None:
        """Allocates what ``needs`` asks for; see ``HeadGradients``."""
        self.head, self.grad_rows = head, options.grad_rows
        single = sum(rows.start < options.grad_rows for rows in chunks.rows) == 1
        self.of_head = HeadGradients(head, needs, scale_, single=single, rounded=rounded)
        self.hidden: torch.Tensor | None = None
        self.sums: torch.Tensor | None = None
        if needs.hidden:
            like, wide = head.hidden, head.stats_dtype
            dtype = wide if self.of_head.keep else like.dtype
            self.hidden = torch.empty_like(like, dtype=dtype)
            if options.grad_rows < len(like):
                self.hidden[options.grad_rows :] = 0
            if dtype != wide:
                self.sums = like.new_empty((chunks.buffer_rows, like.shape[1]), dtype=wide)

    def add(
        self,
        rows: slice,
        dlogits: torch.Tensor,
        power: torch.Tensor | None = None,
        capped: torch.Tensor | None = None,
    ) -> None:
        """Adds one chunk; see ``HeadGradients.add``."""
        rows = slice(rows.start, min(rows.stop, self.grad_rows))
        count = rows.stop - rows.start
        if count <= 0:
            return
        dlogits = dlogits[:count]
        power = None if power is None else power[:count]
        if self.hidden is not None:
            into = self.hidden[rows] if self.sums is None else self.sums[:count]
            states_gradient_(into, dlogits, self.head.weight, power)
            if self.sums is not None:
                self.hidden[rows] = into
        capped = None if capped is None else capped[:count]
        self.of_head.add(self.head.hidden[rows], dlogits, power, capped)

    def finish(self) -> tuple[torch.Tensor | None, ...]:
        """The gradients to hidden, weight and bias; ``None`` for what is not needed."""
        return self.hidden, *self.of_head.finish()


def states_gradient_(
    into: torch.Tensor, dlogits: torch.Tensor, weight: torch.Tensor, power: torch.Tensor | None
) -> None:
    """Writes dH [R, H] of a chunk, which includes ``power`` [R] no more."""
    product(dlogits, weight, into)
    if power is not None:
        into /= power.unsqueeze(1)


def float16_power(chunk: RowChunk, stats: RowStats, grads: RowGrads) -> torch.Tensor:
    """The power of two [R] that scales a row's derivatives to the range of float16.

    Every ``|dL/dlogits|`` of a row is at most ``scale (|l| + |g| + |e| (entropy + 1))``; the power
    brings this bound into [2^14, 2^15). Where the gradient is 0 or not finite, it is 2^100.
    """
    g, e, by_lse = (torch.zeros_like(stats.logp) if t is None else t.abs() for t in grads)
    bound = chunk.scale * (g + by_lse + torch.where(e > 0, e * (stats.entropy + 1.0), 0.0))
    bound = torch.where(chunk.targets == chunk.ignore_index, 0.0, bound)
    # Exponents as float32 stores them, with 127 added; infinity and NaN have 255.
    exponent = bound.view(torch.int32) >> 23 & 255
    of_power = (127 + FLOAT16_TOP + 127 - exponent).clamp(max=227)
    of_power = torch.where(exponent == 255, 227, of_power).to(torch.int32)
    return (of_power << 23).view(torch.float32)
