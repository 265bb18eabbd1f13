"""Chooses a token from logits and one uniform number, by the inverse of the CDF."""

from typing import NamedTuple

import torch
from torch import Tensor

from wavalign_fast.ops.rollout import kernels_take

NO_TOKEN = -1
"""Stands for an id if the logits of a row are not a distribution."""

BLOCK = 512
"""Ids of a block. Sums of blocks are searched first, then one block of each row."""

BLOCKED_SIZE = 2048
"""Vocabulary size from which blocks are used. Below it one running sum is as fast."""


class Chosen(NamedTuple):
    """The chosen ids and their log-probs under softmax(logits / temperature)."""

    ids: Tensor
    """int64 [N]; ``NO_TOKEN`` in a row that is not a distribution."""
    logps: Tensor
    """float32 [N]; 0 in a greedy choice, which has probability 1."""


def choose_tokens(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """Chooses the next ids [N] from logits [N, V], as ``choose_with_logps`` does."""
    return choose_with_logps(logits, temperature, uniform).ids


def choose_with_logps(logits: Tensor, temperature: float, uniform: Tensor | None) -> Chosen:
    """Chooses the next ids [N] from logits [N, V], and returns their log-probs too.

    Without ``uniform`` this is the argmax. Otherwise one uniform number in [0, 1) per row, float64
    [N], is mapped through the inverse of the row's CDF: the id is the first whose CDF is above the
    number. So a row's sample does not depend on the other rows of the batch. The CDF is summed in
    float64: over a vocabulary of 10^5 ids float32 has too few digits for rare ids. An id of
    probability 0 is never chosen.

    A row with NaN or +inf among its logits, or with nothing above -inf, is not a distribution and
    gets ``NO_TOKEN``, which needs no host sync.
    """
    if uniform is None:
        best = logits.max(-1)
        ids = best.indices.masked_fill(~best.values.isfinite(), NO_TOKEN)
        return Chosen(ids, torch.zeros_like(best.values, dtype=torch.float32))
    if kernels_take(logits):
        return Chosen(*torch.ops.wavalign_fast.choose_tokens(logits, uniform, temperature))
    return _choose_by_torch(logits, temperature, uniform)


def _choose_by_torch(logits: Tensor, temperature: float, uniform: Tensor) -> Chosen:
    """The definition of the op, in plain torch, for any device."""
    top = logits.amax(-1, keepdim=True)
    top = top.to(torch.promote_types(top.dtype, torch.float32))
    if logits.shape[-1] < BLOCKED_SIZE:
        weights = _scores(logits, top, temperature).exp_()
        sums = _running_sums(weights)
        total = sums[:, -1]
        ids = _search(sums, uniform * total)[:, 0]
    else:
        blocks = _blocks(logits, top, temperature)
        sums = blocks.sum(-1, dtype=torch.float64)  # [N, B]
        total = sums.sum(-1)
        block, rest = _first_above(sums, uniform * total)
        own = blocks.gather(1, block[:, None, None].expand(-1, -1, BLOCK))[:, 0]
        place, _ = _first_above(own, rest)
        # The search in a row with NaN ends behind the vocabulary.
        ids = (block * BLOCK + place).clamp_(max=logits.shape[-1] - 1)
    score = _scores(logits.gather(1, ids[:, None]), top, temperature)[:, 0]
    logps = (score.double() - total.log()).float()
    # ``where`` would copy the number to the device, which is a host sync.
    return Chosen(ids.masked_fill(~total.isfinite(), NO_TOKEN), logps)


def _scores(logits: Tensor, top: Tensor, temperature: float, out: Tensor | None = None) -> Tensor:
    """Returns (logits - top) / temperature, at most 0, in the dtype of ``top``."""
    # Subtract first: dividing the raw logits could overflow at a low temperature.
    scores = torch.sub(logits, top, out=out)
    return scores if temperature == 1.0 else scores.div_(temperature)


def _blocks(logits: Tensor, top: Tensor, temperature: float) -> Tensor:
    """Returns exp(scores) in blocks [N, V / BLOCK rounded up, BLOCK], with zeros at the end."""
    rows, size = logits.shape
    weights = top.new_empty(rows, -(-size // BLOCK) * BLOCK)
    _scores(logits, top, temperature, out=weights[:, :size]).exp_()
    weights[:, size:].zero_()
    return weights.view(rows, -1, BLOCK)


def _first_above(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the first running sum above ``target`` in each row, which is of a weight above 0.

    Args:
        weights: [N, K], 0 or more.
        target: float64 [N], 0 or more. One that rounding has moved to the sum of the row or beyond
            counts as just below it.

    Returns:
        The index [N], and what of the target is left after the weights before it [N].
    """
    sums = _running_sums(weights)
    last = sums[:, -1]
    target = torch.minimum(target, last.nextafter(torch.zeros_like(last)))
    index = _search(sums, target)
    before = sums.gather(1, index) - weights.gather(1, index)
    return index[:, 0], (target - before[:, 0]).clamp_(min=0.0)


def _search(sums: Tensor, target: Tensor) -> Tensor:
    """The first index [N, 1] whose sum is above the target; any index in a row with NaN."""
    found = torch.searchsorted(sums, target[:, None], right=True)
    return found.clamp_(max=sums.shape[-1] - 1)


def _running_sums(weights: Tensor) -> Tensor:
    """Running sums in float64, which never fall, and rise only where a weight is above 0."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    return sums if sums.is_cpu else _in_order(sums, weights)


def _in_order(sums: Tensor, weights: Tensor) -> Tensor:
    """Corrects running sums that were added in parallel, in another order for each sum.

    Such a sum may be above or below the one before it by a rounding error, even where the weight
    is 0.
    """
    return sums.masked_fill(weights == 0, 0.0).cummax(-1).values
