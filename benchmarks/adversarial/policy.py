"""Policy and preference losses that take hidden states: masks, ratios, rows without a token."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..providers import Calls, Unsupported, dpo_from, grpo_from
from .case import case, want
from .problem import IGNORE_INDEX, PLAIN, compare, gradient

Loss = Callable[..., Tensor]

PLAIN_GRPO = grpo_from(PLAIN.logp)
PLAIN_DPO = dpo_from(PLAIN.logp)


@dataclass(frozen=True)
class Rollouts:
    hidden: Tensor
    weight: Tensor
    ids: Tensor
    mask: Tensor
    rewards: Tensor
    old_logp: Tensor | None


def rollouts(*, on_policy: bool = False) -> Rollouts:
    """Two prompts with two rollouts each; some ratios lie beyond the clip on either side."""
    g = torch.Generator().manual_seed(0)
    rows, length, h, v = 4, 24, 16, 3001
    hidden = torch.randn(rows, length, h, generator=g)
    weight = torch.randn(v, h, generator=g) / 4
    ids = torch.randint(0, v, (rows, length), generator=g)
    mask = (torch.rand(rows, length, generator=g) < 0.7).float()
    mask[:, 0] = 1.0
    logp = PLAIN.logp(hidden.flatten(0, 1), weight, ids.flatten()).view(rows, length)
    old = logp + 0.3 * torch.randn(rows, length, generator=g)
    rewards = torch.tensor([[1.0, 4.0], [5.0, 3.0]])
    return Rollouts(hidden, weight, ids, mask, rewards, None if on_policy else old)


def _step(grpo: Loss | None, r: Rollouts, scale: float = 1.0) -> dict[str, Tensor]:
    if grpo is None:
        raise Unsupported("no policy loss that takes hidden states")
    hidden, weight = (t.clone().requires_grad_() for t in (r.hidden, r.weight))
    loss = grpo(hidden, weight, r.ids, r.mask, r.rewards, old_logp=r.old_logp)
    return _backward(loss, scale, hidden, weight)


def _backward(loss: Tensor, scale: float, hidden: Tensor, weight: Tensor) -> dict[str, Tensor]:
    (loss * scale).backward()
    return {
        "loss": loss.detach(),
        "grad_hidden": gradient("hidden", hidden),
        "grad_weight": gradient("weight", weight),
    }


def _double(r: Rollouts) -> Rollouts:
    old = None if r.old_logp is None else r.old_logp.double()
    return Rollouts(
        r.hidden.double(), r.weight.double(), r.ids, r.mask.double(), r.rewards.double(), old
    )


def _right(seen: dict[str, Tensor], r: Rollouts, scale: float = 1.0) -> None:
    truth, plain = _step(PLAIN_GRPO, _double(r), scale), _step(PLAIN_GRPO, r, scale)
    for name, value in seen.items():
        compare(name, value, truth[name], plain[name], value_floor=2e-6)


def _unchanged(calls: Calls, dirty: Rollouts, clean: Rollouts) -> None:
    seen = _step(calls.grpo, dirty)
    for name, value in seen.items():
        want(bool(value.isfinite().all()), f"{name} is not finite")
    _right(seen, clean)


@case("grpo", "Clipped policy loss and its gradients, off-policy and on-policy, loss scaled",
      items=(6,))  # fmt: skip
def policy_loss_and_gradients(calls: Calls) -> None:
    for r in (rollouts(), rollouts(on_policy=True)):
        _right(_step(calls.grpo, r), r)
    _right(_step(calls.grpo, r, scale=3.0), r, scale=3.0)


@case("grpo-nan-under-mask", "NaN hidden states of masked tokens reach nothing", items=(7, 14, 23),
      source="unsloth#3006")  # fmt: skip
def policy_ignores_nan_under_the_mask(calls: Calls) -> None:
    clean = rollouts()
    hidden = clean.hidden.masked_fill((clean.mask == 0).unsqueeze(-1), torch.nan)
    want(bool(hidden.isnan().any()), "the problem lost its NaN")
    _unchanged(calls, replace(clean, hidden=hidden), clean)


@case("grpo-nan-scores-under-mask", "NaN old log-probs of masked tokens reach nothing",
      items=(7, 14))  # fmt: skip
def policy_ignores_nan_old_logp_under_the_mask(calls: Calls) -> None:
    clean = rollouts()
    _unchanged(
        calls,
        replace(clean, old_logp=clean.old_logp.masked_fill(clean.mask == 0, torch.nan)),
        clean,
    )


@case("grpo-ids-under-mask", "Ids of -100 under the mask reach nothing", items=(7, 13))
def policy_ignores_ids_under_the_mask(calls: Calls) -> None:
    clean = rollouts()
    _unchanged(
        calls, replace(clean, ids=clean.ids.masked_fill(clean.mask == 0, IGNORE_INDEX)), clean
    )


@case("grpo-all-masked", "No token left: loss 0, gradients 0 and present", items=(7, 8, 14),
      source="unsloth#3006, unsloth#3827")  # fmt: skip
def policy_with_every_token_masked(calls: Calls) -> None:
    r = rollouts()
    seen = _step(calls.grpo, replace(r, mask=torch.zeros_like(r.mask)))
    for name, value in seen.items():
        most = value.abs().max().item()
        want(most == 0, f"{name} is {most}, want 0")


@case("grpo-row-masked", "A rollout without a token adds 0 and still counts in the mean",
      items=(7, 16), source="unsloth#3827")  # fmt: skip
def policy_with_one_rollout_masked(calls: Calls) -> None:
    r = rollouts()
    mask = r.mask.clone()
    mask[1] = 0.0
    r = replace(r, mask=mask)
    _right(_step(calls.grpo, r), r)


@case("grpo-equal-rewards", "Groups of equal rewards: loss 0, gradients 0, nothing infinite",
      items=(14,))  # fmt: skip
def policy_with_equal_rewards(calls: Calls) -> None:
    r = rollouts()
    seen = _step(calls.grpo, replace(r, rewards=torch.full((2, 2), 3.0)))
    for name, value in seen.items():
        most = value.abs().max().item()
        want(most == 0, f"{name} is {most}, want 0")


@case("grpo-ratio-overflow-clipped", "Old log-probs of -300 where the clip decides: right and "
      "finite", items=(18, 23), source="trl#4772")  # fmt: skip
def policy_ratio_overflow_that_the_clip_bounds(calls: Calls) -> None:
    r = rollouts()
    old = r.old_logp.clone()
    old[1, ::3] = -300.0  # rollout 1 has the larger reward of its pair: min() takes the clip
    r = replace(r, old_logp=old)
    seen = _step(calls.grpo, r)
    for name, value in seen.items():
        want(bool(value.isfinite().all()), f"{name} is not finite")
    truth = _step(PLAIN_GRPO, _double(r))
    for name, value in seen.items():
        compare(name, value, truth[name], truth[name].float(), value_floor=2e-6)


@case("grpo-ratio-overflow", "Old log-probs of -300 where no clip helps: finite, or a loss that "
      "shows it", items=(18, 23), source="trl#4772")  # fmt: skip
def policy_ratio_overflow_without_a_clip(calls: Calls) -> str:
    r = rollouts()
    old = r.old_logp.clone()
    old[0, ::3] = -300.0  # a negative advantage: min() takes the ratio itself
    seen = _step(calls.grpo, replace(r, old_logp=old))
    finite = {name: bool(value.isfinite().all()) for name, value in seen.items()}
    want(
        all(finite.values()) or not finite["loss"],
        f"loss {seen['loss'].item():.3g} is finite, gradients are not",
    )
    return "finite" if all(finite.values()) else f"loss {seen['loss'].item()}"


@case("grpo-micro-batches", "Micro-batches of one prompt each average to the batch", items=(16,),
      source="trl#6024, ms-swift#10117")  # fmt: skip
def policy_micro_batches_average_to_the_batch(calls: Calls) -> None:
    r = rollouts()
    whole = _step(calls.grpo, r)
    halves = [
        _step(
            calls.grpo,
            Rollouts(
                r.hidden[rows], r.weight, r.ids[rows], r.mask[rows], r.rewards[prompt],
                r.old_logp[rows],
            ),
            scale=0.5,
        )
        for rows, prompt in ((slice(2), slice(1)), (slice(2, 4), slice(1, 2)))
    ]  # fmt: skip
    added = halves[0]["grad_weight"] + halves[1]["grad_weight"]
    error = (added - whole["grad_weight"]).abs().max() / whole["grad_weight"].abs().max()
    want(bool(error <= 1e-5), f"grad_weight: off by {error:.1e}, want at most 1e-5")


def _preferences(dpo: Loss | None, r: Rollouts) -> dict[str, Tensor]:
    if dpo is None:
        raise Unsupported("no preference loss that takes hidden states")
    hidden, weight = (t.clone().requires_grad_() for t in (r.hidden, r.weight))
    loss = dpo(hidden, weight, r.ids, r.mask, beta=0.5)
    return _backward(loss, 1.0, hidden, weight)


def _right_preferences(seen: dict[str, Tensor], r: Rollouts) -> None:
    truth, plain = _preferences(PLAIN_DPO, _double(r)), _preferences(PLAIN_DPO, r)
    for name, value in seen.items():
        compare(name, value, truth[name], plain[name], value_floor=2e-6)


@case("dpo", "Preference loss without a reference and its gradients", items=(6,))
def preference_loss_and_gradients(calls: Calls) -> None:
    r = rollouts()
    _right_preferences(_preferences(calls.dpo, r), r)


@case("dpo-nan-under-mask", "NaN hidden states of prompt and padding reach no preference loss",
      items=(7, 14, 23))  # fmt: skip
def preference_ignores_nan_under_the_mask(calls: Calls) -> None:
    clean = rollouts()
    hidden = clean.hidden.masked_fill((clean.mask == 0).unsqueeze(-1), torch.nan)
    _right_preferences(_preferences(calls.dpo, replace(clean, hidden=hidden)), clean)
