"""The definition: selected log-probabilities in plain torch, in any floating dtype."""

import torch

from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.logit_transform import LogitForm


def reference_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    form: LogitForm,
    ignore_index: int,
    with_top: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``(logp, entropy, lse, top)`` of the softmax of the logits of ``form``, each [T].

    ``top``, if ``with_top``, is bool: whether no id has a larger log-prob than the target.

    Computes in float64 for float64 operands and in float32 for all others; the logits are
    materialised. Ignored rows are left out before the GEMM, so their contents are never read.
    """
    if hidden.device.type == "meta":  # there is no autocast for it
        return _in_full(hidden, weight, targets, bias, form, ignore_index, with_top)
    with torch.autocast(hidden.device.type, enabled=False):  # else this GEMM runs in bf16
        return _in_full(hidden, weight, targets, bias, form, ignore_index, with_top)


def _in_full(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    form: LogitForm,
    ignore_index: int,
    with_top: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    compute = statistics_dtype(hidden.dtype)
    live = _live_rows(targets, ignore_index)  # [N]
    ids = targets.index_select(0, live)
    product = hidden.index_select(0, live).to(compute) @ weight.to(compute).T  # [N, V]
    logits = form.logits(product, None if bias is None else bias.to(compute))
    # An id outside the vocabulary must not read out of bounds; it makes its own row NaN.
    inside = (ids >= 0) & (ids < weight.shape[0])
    logits = torch.where(inside.unsqueeze(-1), logits, torch.nan)
    ids = torch.where(inside, ids, 0)

    logp = torch.log_softmax(logits, dim=-1)  # [N, V]
    lse = torch.logsumexp(logits, dim=-1)
    # In an entropy 0 * -inf is 0, in its value and in its gradient.
    finite = torch.where(torch.isneginf(logp), 0.0, logp)
    entropy = -(logp.exp() * finite).sum(dim=-1)
    selected = logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)

    def scatter(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(targets.shape).index_put((live,), values)

    top = scatter(selected.detach() >= logp.detach().amax(dim=-1)) if with_top else None
    return scatter(selected), scatter(entropy), scatter(lse), top


def _live_rows(targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Indices [N] of the rows that are not ignored; of all rows where there are only shapes."""
    if targets.device.type == "meta":
        return torch.arange(len(targets), device="meta")
    return torch.nonzero(targets != ignore_index).squeeze(-1)
