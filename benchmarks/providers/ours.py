"""This package's own losses as a provider."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .base import IGNORE_INDEX, Calls


@lru_cache
def _objective(vocab_size: int, clip: float | None, rl_weight: float, backend: str) -> Any:
    import wavalign_fast as wf

    return wf.HybridObjective(
        wf.ModalityLayout(vocab_size=vocab_size, speech=()),
        policy_scope="all",
        clip=clip,
        gate=rl_weight,
        options=wf.LossOptions(backend=backend),
    )


def ours(backend: str) -> Calls:
    import wavalign_fast as wf
    from wavalign_fast.ops import backend_status

    reason = backend_status()[backend]
    if reason is not None:
        raise RuntimeError(reason)
    options = wf.LossOptions(backend=backend)

    def logp(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        return wf.linear_logprob(hidden, weight, targets, bias=bias, options=options).logp

    def logp_entropy(
        hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        out = wf.linear_logprob(
            hidden, weight, targets, bias=bias, with_entropy=True, options=options
        )
        return out.logp, out.entropy

    def ce(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        batch = wf.HybridBatch(
            targets=targets,
            policy_row=torch.full_like(targets, -1),
            anchor_row=torch.where(targets == IGNORE_INDEX, -1, 0),
            rewards=torch.zeros(0, 0),
        )
        objective = _objective(weight.shape[0], None, 0.0, backend)
        return objective(hidden, weight, batch, bias=bias).loss

    def grpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, rewards: Tensor,
        *, old_logp: Tensor | None = None, clip: float = 0.2,
    ) -> Tensor:  # fmt: skip
        row = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
        batch = wf.HybridBatch(
            targets=ids.flatten(),
            policy_row=torch.where(mask > 0, row, -1).flatten(),
            anchor_row=torch.full_like(ids, -1).flatten(),
            rewards=rewards,
            old_logp=None if old_logp is None else old_logp.flatten(),
        )
        return _objective(weight.shape[0], clip, 1.0, backend)(hidden, weight, batch).loss

    def dpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor,
        *, ref_logp: Tensor | None = None, beta: float = 0.1,
    ) -> Tensor:  # fmt: skip
        rows = torch.arange(len(ids), device=ids.device)
        return wf.fused_dpo_loss(
            hidden.flatten(0, 1),
            weight,
            torch.where(mask > 0, ids, IGNORE_INDEX).flatten(),
            rows.unsqueeze(1).expand_as(ids).flatten(),
            rows.view(2, -1).T,
            layout=_objective(weight.shape[0], None, 1.0, backend).layout,
            scope="all",
            beta=beta,
            ref_logp=ref_logp,
            options=options,
        ).loss

    return Calls(logp=logp, logp_entropy=logp_entropy, ce=ce, grpo=grpo, dpo=dpo)
