"""Model flops of a training step, and the share of a GPU's peak that they reach (MFU).

Model flops are those that the mathematics needs, whatever the kernels do. A multiply-add counts as
two. Every matrix is applied to real tokens only, the head only to positions that carry loss, and
attention only to pairs of a query and a key that it may see. Padding, masked halves of attention
and recomputed activations are left out, so work saved there shows as time and not as flops.

Source of the definition: Chowdhery et al., PaLM (2022), appendix B, with causal attention counted
as half, as Dao (FlashAttention-2, 2023) does.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from wavalign_fast.models import second_head
from wavalign_fast.models.attention_shape import attention_windows, head_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Weights(NamedTuple):
    """Numbers of weights that a token, or a row of the head, is multiplied by."""

    trained: float
    frozen: float

    @property
    def forward(self) -> float:
        """Flops of the forward pass for one token."""
        return 2 * (self.trained + self.frozen)

    @property
    def backward(self) -> float:
        """Flops of the backward pass: the input's gradient, and that of the trained weights."""
        return self.forward + 2 * self.trained


class ModelSize(NamedTuple):
    """What the flops of a model depend on."""

    body: Weights
    """All matrices except the input embedding and the head; of experts, those that are chosen."""
    head: Weights
    """Without adapters V · H weights."""
    pair_flops: float
    """Flops of a layer's attention for one query and one key: 4 · heads · head size."""
    windows: tuple[int | None, ...]
    """For each layer with attention the number of keys that a query sees; ``None`` = all before."""
    heads: int = 1
    """Heads of that size, each of which a sampled position is multiplied with."""


class StepTokens(NamedTuple):
    """The tokens of a step, over all ranks. Lengths are in positions, of one id or of two."""

    trained: Sequence[int] = ()
    """Lengths of the rows that went forward and backward, without padding."""
    live: int = 0
    """Positions of these rows that carry loss."""
    scored: Sequence[int] = ()
    """Lengths of the rows that only went forward, such as those of the reference."""
    scored_live: int = 0
    """Positions of the scored rows whose log-probs were computed."""
    prompts: Sequence[int] = ()
    """Lengths of the prompts of the rollouts, each run once for its whole group."""
    completions: Sequence[tuple[int, int]] = ()
    """(prompt length, sampled ids) of every completion."""


class StepFlops(NamedTuple):
    """Model flops of a step by phase, over all ranks."""

    forward_backward: float
    reference: float
    rollout: float
    recomputation: float
    """Repeated forward passes of activation checkpointing. They are not model flops."""

    @property
    def model(self) -> float:
        """Model flops of the whole step."""
        return self.forward_backward + self.reference + self.rollout


def model_size(model: "PreTrainedModel") -> ModelSize:
    """Counts the matrices of a causal LM; its weights may be on the meta device or sharded.

    A LoRA counts as matrices of its own beside the frozen ones. A layer without attention over keys
    (a state-space or linear-attention layer) counts by its matrices alone.
    """
    config = model.config.get_text_config()
    head, second = list(model.get_output_embeddings().parameters()), second_head(model)
    outside_body = [*head, *(() if second is None else second.parameters())]
    lookups = [
        weight
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
    ]
    outside = {id(weight) for weight in (*outside_body, *lookups)}
    body = [weight for weight in model.parameters() if id(weight) not in outside]
    return ModelSize(
        _weights(body, _expert_share(config)),
        _weights(head, 1.0),
        4.0 * config.num_attention_heads * head_size(config),
        attention_windows(config),
        heads=1 if second is None else 2,
    )


def step_flops(size: ModelSize, tokens: StepTokens, *, recompute: bool = False) -> StepFlops:
    """Returns the model flops of a step; ``recompute``: with activation checkpointing."""
    body, head = size.body, size.head
    pairs = size.pair_flops * sum(_pairs(size.windows, 0, n) for n in tokens.trained)
    positions = sum(tokens.trained)
    forward = body.forward * positions + pairs
    backward = body.backward * positions + 2 * pairs
    scored_pairs = sum(_pairs(size.windows, 0, n) for n in tokens.scored)
    return StepFlops(
        forward_backward=forward + backward + (head.forward + head.backward) * tokens.live,
        reference=body.forward * sum(tokens.scored)
        + size.pair_flops * scored_pairs
        + head.forward * tokens.scored_live,
        rollout=_rollout(size, tokens),
        recomputation=forward if recompute else 0.0,
    )


def mfu(flops: float, seconds: float, peak: float, *, devices: int = 1) -> float:
    """Returns the share of the devices' peak that ``flops`` in ``seconds`` are, 0 to 1.

    Args:
        flops: of all devices together, ``StepFlops.model`` or one of its phases.
        peak: flops per second of one device (``gpu_specifications.peak_flops``).
    """
    return flops / (seconds * peak * devices)


def _rollout(size: ModelSize, tokens: StepTokens) -> float:
    """Each prompt runs once and gives the logits of the first id of its completions.

    The last id of a completion is not fed to the model again.
    """
    fed = sum(max(new - 1, 0) for _, new in tokens.completions)
    pairs = sum(_pairs(size.windows, 0, n) for n in tokens.prompts)
    pairs += sum(
        _pairs(size.windows, prompt, prompt + new - 1)
        for prompt, new in tokens.completions
        if new > 1
    )
    return (
        size.body.forward * (sum(tokens.prompts) + fed)
        + size.pair_flops * pairs
        + size.heads * size.head.forward * (len(tokens.prompts) + fed)
    )


def _pairs(windows: Iterable[int | None], start: int, end: int) -> int:
    """Pairs of a query at a position ``start`` … ``end - 1`` and a key that it sees, by layer."""
    return sum(_seen(end, window) - _seen(start, window) for window in windows)


def _seen(length: int, window: int | None) -> int:
    """Keys that the first ``length`` positions see: 1, 2, … up to ``window``."""
    rising = length if window is None else min(length, window)
    return rising * (rising + 1) // 2 + (length - rising) * rising


def _weights(parameters: Iterable[nn.Parameter], expert_share: float) -> Weights:
    trained = frozen = 0.0
    for weight in parameters:
        if weight.ndim < 2:  # norms and biases
            continue
        count = weight.numel() * (expert_share if weight.ndim > 2 else 1.0)
        if weight.requires_grad:
            trained += count
        else:
            frozen += count
    return Weights(trained, frozen)


def _expert_share(config: Any) -> float:
    """The share of a layer's experts that a token goes to; transformers stacks them, [E, …]."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    return config.num_experts_per_tok / experts if experts else 1.0
