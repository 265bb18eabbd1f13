"""The public functions on a GPU backend: the chunk loop over the live rows of a call."""

from collections.abc import Callable

from torch import Tensor

from wavalign_fast.ops.backends import status_of
from wavalign_fast.ops.chunked import autograd
from wavalign_fast.ops.chunked.chunks import ChunkOptions, Head, Needs, head_of
from wavalign_fast.ops.chunked.compaction import LiveRows, gather_live_rows
from wavalign_fast.ops.chunked.interface import is_top
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands, wants_grad

DEFAULT_MEMORY_BUDGET = 2 * 2**30
"""Bytes of logits at once. With fewer rows to a chunk the head's gradient, which is as large, is
read and written more often; with more nothing is gained."""

Attach = Callable[[Tensor], Tensor]


def gpu_logprob(
    operands: Operands, live: LiveRows, ignore_index: int, *, with_top: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``(logp, entropy, lse, top)`` of the rows of ``operands``, each [T].

    Args:
        live: of the same operands, on the device of the rows.
    """
    head = _live_head(operands, live, ignore_index)
    learning = wants_grad(operands.rows, operands.weight, operands.bias)
    scorer = not (operands.options.deterministic or learning or head.bias_inside)
    if scorer and _triton_works(operands.backend):
        *scores, log_sum = _without_logits(head)
    else:
        *scores, log_sum = autograd.chunked_logprob(head, chunk_options(operands, live))
    top = None
    if with_top:
        # While a graph is captured or traced, rows that are ignored are among the live ones.
        top = (live.targets != ignore_index) & is_top(scores[0].detach(), log_sum)
    return live.scatter_scores(scores, top)


def gpu_hybrid_step(
    operands: Operands, live: LiveRows, *, clip: tuple[float, float] | None
) -> tuple[Tensor, Tensor, Tensor, Attach]:
    """``(logp, entropy, lse)``, each [T], and a function that attaches the gradients to the loss.

    Args:
        live: of the same operands, with a table, on the device of the rows.
    """
    assert live.table is not None
    head = _live_head(operands, live, IGNORE_INDEX)
    needs = needs_of(head)
    scores, gradients = autograd.chunked_hybrid_step(
        head.detached(), live.table, clip, needs, chunk_options(operands, live)
    )
    logp, entropy, lse = live.scatter(scores)
    return logp, entropy, lse, attaching(head, gradients, needs, operands.backend)


def needs_of(head: Head) -> Needs:
    """The gradients that autograd wants of a head's operands."""
    return Needs(*(wants_grad(leaf) for leaf in (head.hidden, head.weight, head.bias)))


def attaching(
    head: Head, gradients: tuple[Tensor | None, ...], needs: Needs, backend: str
) -> Attach:
    """A function that gives a loss, 0-d, its gradients to hidden, weight and bias."""
    leaves = (head.hidden, head.weight, head.bias)

    def attach(loss: Tensor) -> Tensor:
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need and t is not None]
        found = [g for g, need in zip(gradients, needs, strict=True) if need and g is not None]
        return autograd.with_gradients(loss.detach(), wanted, found, backend)

    return attach


def _live_head(operands: Operands, live: LiveRows, ignore_index: int) -> Head:
    hidden = gather_live_rows(operands.rows, live.index, operands.backend)
    return head_of(operands, hidden, live.targets, ignore_index)


def chunk_options(operands: Operands, live: LiveRows) -> ChunkOptions:
    """How the chunk loop computes a call."""
    budget = operands.options.memory_budget
    return ChunkOptions(
        backend=operands.backend,
        memory_budget=DEFAULT_MEMORY_BUDGET if budget is None else budget,
        same_bits=operands.options.deterministic,
        grad_rows=live.grad_rows,
    )


def _triton_works(backend: str) -> bool:
    return backend == "triton" or status_of("triton") is None


def _without_logits(head: Head) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropies, lse, and lse above the largest logit, each [N]."""
    from wavalign_fast.ops import triton

    stats = triton.score(
        head.hidden,
        head.weight,
        head.targets,
        None if head.bias is None else head.bias.float(),
        scale=1.0 / head.temperature,
        softcap=head.softcap,
        ignore_index=head.ignore_index,
    )
    return stats.logp, stats.entropy, stats.top + stats.log_sum, stats.log_sum
