"""Sampling from any Hugging Face causal LM: one prefill a prompt, one decode for all rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

COMPACT_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it: dropping copies the whole cache."""


def _left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt ids [B, L] padded on the left, and which of them are real, bool [B, L]."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (length - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    real = torch.arange(length, device=device) >= (length - lengths)[:, None]
    return ids, real


def choose_tokens(
    logits: torch.Tensor, temperature: float, uniform: torch.Tensor | None
) -> torch.Tensor:
    """Next ids [N] from logits [N, V]: argmax without ``uniform``, else the inverse of the CDF.

    One uniform number in [0, 1) a row, [N] float64, decides its token, so what a row samples does
    not depend on which other rows are still in the batch. The sum runs in float64 because a
    vocabulary of 10^5 ids leaves float32 no digits for its rare ones.
    """
    if uniform is None:
        return logits.argmax(-1)
    cdf = torch.softmax(logits.float() / temperature, -1).cumsum(-1, dtype=torch.float64)
    chosen = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp_(max=logits.shape[-1] - 1)


def _check(
    prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int, temperature: float
) -> None:
    empty = [row for row, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty, wanted at least one id in every prompt")
    for name, value in (("group_size", group_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, wanted 0 (greedy) or more")


class _Decode:
    """The rows still being written: their cache, mask and positions."""

    def __init__(self, cache: "DynamicCache", real: torch.Tensor, positions: torch.Tensor) -> None:
        self.cache = cache
        self.real = real  # bool [N, L]; columns of padding are never attended to
        self.positions = positions  # [N], of the token that comes next
        self.padded = not bool(real.all())
        self.rows = torch.arange(len(real), device=real.device)

    def logits(self, model: "PreTrainedModel", tokens: torch.Tensor) -> torch.Tensor:
        """Feeds one token a row [N]; logits of the next, [N, V]."""
        mask = None
        if self.padded:
            seen = self.cache.get_seq_length() + 1 - self.real.shape[1]
            mask = torch.cat([self.real, self.real.new_ones(len(self.real), seen)], 1)
        out = model(
            tokens[:, None],
            attention_mask=mask,
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions = self.positions + 1
        return out.logits[:, -1]

    def keep(self, kept: torch.Tensor) -> None:
        """Drops every row but ``kept`` (indices into the current ones)."""
        self.cache.batch_select_indices(kept)
        self.real, self.positions = self.real[kept], self.positions[kept]
        self.rows = self.rows[kept]


def _prefill(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], pad_id: int, group_size: int
) -> tuple[_Decode, torch.Tensor]:
    """Runs every prompt once, then repeats its cache and its last logits ``group_size`` times."""
    from transformers import DynamicCache

    ids, real = _left_pad(prompts, pad_id, model.device)
    positions = (real.cumsum(1) - 1).clamp_(min=0)
    cache = DynamicCache(config=model.config)
    out = model(
        ids,
        attention_mask=real,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    if group_size > 1:
        cache.batch_repeat_interleave(group_size)

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(group_size, 0)

    return _Decode(cache, repeat(real), repeat(positions[:, -1] + 1)), repeat(out.logits[:, -1])


@torch.inference_mode()
def sample_completions(
    model: "PreTrainedModel",
    prompt_ids: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Samples ``group_size`` completions of each of B prompts in one batched decode.

    Tokens come from softmax(logits / temperature) over the whole vocabulary, no top-k or top-p, so
    at temperature 1 their log-probs are those the trainer computes. Temperature 0 is greedy.

    Args:
        model: a causal LM with a Hugging Face forward; it is put in eval mode for the call.
        prompt_ids: B id sequences, of any lengths.
        generator: source of randomness, on the model's device; one draw a row and step.

    Returns:
        B * group_size id lists, prompt-major; ``eos_id`` is included where it was sampled.
    """
    _check(prompt_ids, group_size, max_new_tokens, temperature)
    if not prompt_ids:
        return []
    was_training = model.training
    model.eval()
    try:
        return _decode(
            model, prompt_ids, group_size, max_new_tokens, eos_id, pad_id, temperature, generator
        )
    finally:
        model.train(was_training)


def _decode(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    group_size: int,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    temperature: float,
    generator: torch.Generator | None,
) -> list[list[int]]:
    decode, logits = _prefill(model, prompts, pad_id, group_size)
    total = len(logits)
    written = torch.full((total, max_new_tokens), pad_id, device=logits.device)
    lengths = torch.full((total,), max_new_tokens, device=logits.device)
    live = torch.ones(total, dtype=torch.bool, device=logits.device)  # over decode.rows
    for step in range(max_new_tokens):
        uniform = None
        if temperature > 0:
            uniform = torch.rand(
                total, generator=generator, dtype=torch.float64, device=logits.device
            )[decode.rows]
        tokens = choose_tokens(logits, temperature, uniform)
        written[decode.rows, step] = tokens
        ended = live & (tokens == eos_id)
        lengths[decode.rows[ended]] = step + 1
        live &= ~ended
        remaining = int(live.sum())
        if remaining == 0 or step + 1 == max_new_tokens:
            break
        if len(live) - remaining >= COMPACT_SHARE * len(live):
            kept = live.nonzero()[:, 0]
            decode.keep(kept)
            tokens, live = tokens[kept], live[kept]
        logits = decode.logits(model, tokens)
    return [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]
