"""How to call every implementation that the benchmarks and the adversarial suite compare."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
ADVANTAGE_EPS = 1e-4


class Unsupported(Exception):
    """A provider has no such function, or not with these options."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A provider's functions. Where one is ``None`` the provider has none that takes hidden states.

    logp: hidden [N, H], weight [V, H], targets [N], bias [V] or ``None`` -> log-probs [N];
        differentiable.
    logp_entropy: the same arguments -> (log-probs [N], entropies [N] in nats); differentiable.
    ce: the same arguments -> mean of ``-log p`` over the targets that are not -100.
    grpo: hidden [B, T, H], weight [V, H], ids [B, T] (position t's state predicts ``ids[:, t]``),
        mask [B, T] floats, rewards [P, G] with P * G = B (row p * G + g is rollout g of prompt p),
        keywords ``old_logp`` [B, T] or ``None`` (the policy itself) and ``clip`` (0.2) -> the mean
        over rows of the masked token mean of ``-min(ρA, clip(ρ)A)``.
    dpo: hidden [2P, T, H] (the chosen rows, then the rejected ones), weight, ids [2P, T],
        mask [2P, T], keywords ``ref_logp`` [2P] summed over the same tokens or ``None`` (no
        reference), ``beta`` (0.1) -> mean over pairs of ``-log sigmoid(β margin)``.
    """

    logp: Callable[..., Tensor]
    logp_entropy: Callable[..., tuple[Tensor, Tensor]] | None = None
    ce: Callable[..., Tensor] | None = None
    grpo: Callable[..., Tensor] | None = None
    dpo: Callable[..., Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Provider:
    name: str
    """Key in result files and on the command line."""
    label: str
    """What a table shows."""
    requirement: str | None
    """The pinned distribution, as in ``rivals.txt``; ``None``: torch, or ourselves."""
    load: Callable[[], Calls]
    """Imports it. Raises ``ImportError`` or ``RuntimeError`` with the reason why it cannot run."""


class Loaded(NamedTuple):
    provider: Provider
    calls: Calls | None
    reason: str | None
    """Why ``calls`` is ``None``."""


def group_advantages(rewards: Tensor) -> Tensor:
    """``(R - mean) / (std + 1e-4)`` with the population's std over each row of [P, G], [P * G]."""
    spread = rewards.std(dim=1, correction=0, keepdim=True)
    return ((rewards - rewards.mean(dim=1, keepdim=True)) / (spread + ADVANTAGE_EPS)).flatten()


def grpo_from(logp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The policy loss as trainers write it on [B, T] log-probs."""

    def grpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, rewards: Tensor,
        *, old_logp: Tensor | None = None, clip: float = 0.2,
    ) -> Tensor:  # fmt: skip
        now = logp(hidden.flatten(0, 1), weight, ids.flatten()).view(ids.shape)
        ratio = torch.exp(now - (now.detach() if old_logp is None else old_logp))
        advantage = group_advantages(rewards).unsqueeze(1)
        surrogate = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        return -((surrogate * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

    return grpo


def dpo_from(logp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The preference loss as trainers write it on [2P, T] log-probs."""

    def dpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor,
        *, ref_logp: Tensor | None = None, beta: float = 0.1,
    ) -> Tensor:  # fmt: skip
        per_token = logp(hidden.flatten(0, 1), weight, ids.flatten()).view(ids.shape)
        rewards = (per_token * mask).sum(1)
        if ref_logp is not None:
            rewards = rewards - ref_logp
        chosen, rejected = rewards.chunk(2)
        return -F.logsigmoid(beta * (chosen - rejected)).mean()

    return dpo


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


def _ours(backend: str) -> Calls:
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


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a user writes: the product in the operands' dtype, the softmax in float32."""
    return F.linear(hidden, weight, bias).float()


def _torch_logp_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(_logits(hidden, weight, bias), dim=-1)  # [N, V]
    return -F.nll_loss(logp, targets, reduction="none"), -(logp.exp() * logp).sum(-1)


def _torch_logp(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> Tensor:
    return -F.cross_entropy(_logits(hidden, weight, bias), targets, reduction="none")


def _torch_ce(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> Tensor:
    return F.cross_entropy(_logits(hidden, weight, bias), targets)


_TORCH = Calls(
    logp=_torch_logp,
    logp_entropy=_torch_logp_entropy,
    ce=_torch_ce,
    grpo=grpo_from(_torch_logp),
    dpo=dpo_from(_torch_logp),
)


@lru_cache
def _torch_compile() -> Calls:
    """Compiles a function at its first call."""
    return Calls(**{name: torch.compile(call) for name, call in vars(_TORCH).items()})


def _torch_lce() -> Calls:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise RuntimeError(f"torch {torch.__version__} has no chunked linear_cross_entropy")
    # Its own choice of a chunk makes it many times slower on a CPU.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)

    def loss(
        reduction: str, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return F.linear_cross_entropy(
            hidden, weight, targets, linear_bias=bias, reduction=reduction, options=options
        )

    return Calls(logp=lambda *operands: -loss("none", *operands), ce=partial(loss, "mean"))


def _trl() -> Calls:
    from trl.kernels import ChunkedLogProbFunction

    # Imported by its backward pass: what is missing should show here.
    importlib.import_module("trl.trainer.utils")
    columns = 32768  # the vocabulary chunk of TRL's own head

    def call(
        outputs: tuple[str, ...], hidden: Tensor, weight: Tensor, targets: Tensor,
        bias: Tensor | None = None,
    ) -> Any:  # fmt: skip
        return ChunkedLogProbFunction.apply(
            hidden, weight, bias, targets, 1.0, columns, None, 1.0, outputs
        )

    return Calls(
        logp=lambda *operands: call((), *operands)[0],
        logp_entropy=lambda *operands: call(("entropy",), *operands)[:2],
    )


def _without_bias(call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Any:
        if bias is not None:
            raise Unsupported("no bias")
        return call(hidden, weight, targets)

    return checked


def _verl() -> Calls:
    # Its package wants ray; this file of it does not.
    package = importlib.util.find_spec("verl")
    if package is None or not package.submodule_search_locations:
        raise ImportError("No module named 'verl'")
    path = Path(package.submodule_search_locations[0], "utils/experimental/torch_functional.py")
    spec = importlib.util.spec_from_file_location("verl_torch_functional", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path.name} of verl")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fused = module.FusedLinearForPPO()
    return Calls(
        logp=_without_bias(lambda *operands: fused(*operands)[0]),
        logp_entropy=_without_bias(fused),
    )


def _liger_selective() -> Calls:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearGRPOLoss
    from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

    def logp(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        forward = LigerFusedLinearPPOBase.chunk_forward
        return forward(hidden[None], weight, targets[None], bias=bias)[0]

    def grpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, rewards: Tensor,
        *, old_logp: Tensor | None = None, clip: float = 0.2,
    ) -> Tensor:  # fmt: skip
        loss = LigerFusedLinearGRPOLoss(
            beta=0.0, loss_type="grpo", epsilon_low=clip, epsilon_high=clip, use_ref_model=False,
            compiled=False,
        )  # fmt: skip
        advantages = group_advantages(rewards)
        return loss(hidden, weight, ids, mask, advantages, old_per_token_logps=old_logp)[0]

    def dpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor,
        *, ref_logp: Tensor | None = None, beta: float = 0.1,
    ) -> Tensor:  # fmt: skip
        if ref_logp is not None:
            raise Unsupported("takes the reference's hidden states and head, not its log-probs")
        loss = LigerFusedLinearDPOLoss(beta=beta, use_ref_model=False, compiled=False)
        return loss(weight, hidden, torch.where(mask > 0, ids, IGNORE_INDEX))[0]

    return Calls(logp=logp, grpo=grpo, dpo=dpo)


def _liger_scaled() -> Calls:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    apply = LigerFusedLinearScaledCrossEntropyFunction.apply

    def logp_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nll, entropy = apply(hidden, weight, targets, return_entropy=True)
        return -nll, entropy

    return Calls(
        logp=_without_bias(lambda *operands: -apply(*operands)),
        logp_entropy=_without_bias(logp_entropy),
    )


def _cce() -> Calls:
    from cut_cross_entropy import linear_cross_entropy

    # The only one of its implementations that runs without a GPU.
    loss = partial(linear_cross_entropy, impl="torch_compile")
    return Calls(
        logp=_without_bias(lambda *operands: -loss(*operands, reduction="none")),
        ce=_without_bias(loss),
    )


LIGER = "liger-kernel==0.8.5"
PROVIDERS: tuple[Provider, ...] = tuple(
    Provider(name=name, label=label, requirement=requirement, load=load)
    for name, label, requirement, load in (
        ("ours-cpu", "wavalign_fast", None, lambda: _ours("cpu")),
        ("ours-reference", "wavalign_fast, reference", None, lambda: _ours("reference")),
        ("torch", "PyTorch, full logits", None, lambda: _TORCH),
        ("torch-compile", "PyTorch, full logits, torch.compile", None, _torch_compile),
        ("torch-lce", "torch F.linear_cross_entropy", None, _torch_lce),
        ("trl", "TRL ChunkedLogProbFunction", "trl==1.16.0", _trl),
        ("verl", "verl FusedLinearForPPO", "verl==0.9.1", _verl),
        ("liger-selective", "Liger chunked GRPO and DPO", LIGER, _liger_selective),
        ("liger-scaled", "Liger fused linear scaled CE", LIGER, _liger_scaled),
        ("cce", "Cut Cross-Entropy, torch_compile", "cut-cross-entropy==25.1.1", _cce),
    )
)


def available(names: Iterable[str] | None = None) -> list[Loaded]:
    """The providers of these names (all of them by default), loaded or with the reason why not.

    Raises:
        ValueError: a name that is none of ``PROVIDERS``.
    """
    known = {provider.name: provider for provider in PROVIDERS}
    wanted = list(known if names is None else names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"provider: got {unknown[0]!r}, want one of {', '.join(known)}")
    return [_load(known[name]) for name in wanted]


def _load(provider: Provider) -> Loaded:
    try:
        return Loaded(provider, provider.load(), None)
    except (ImportError, RuntimeError) as error:
        return Loaded(provider, None, str(error))


def version(provider: Provider) -> str | None:
    """The installed version; ``None`` where nothing of that name is installed."""
    if provider.requirement is not None:
        name = provider.requirement.partition("==")[0]
    elif provider.name.startswith("ours"):
        name = "wavalign-fast"
    else:
        return str(torch.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
