"""Sampling from any Hugging Face causal LM: one prefill a prompt, one decode for all rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError
from wavalign_fast.models.transformers_names import cache_argument
from wavalign_fast.rollout.checks import check_ids, check_numbers, end_ids

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

COMPACT_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it: dropping copies the whole cache."""

NO_TOKEN = -1
"""In place of an id where the logits of a row are no distribution."""


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

    A row with NaN or +inf among its logits, or with nothing above -inf, is no distribution: it gets
    ``NO_TOKEN``, a mark on the device that costs no host sync.
    """
    if uniform is None:
        best = logits.max(-1)
        return best.indices.where(best.values.isfinite(), NO_TOKEN)
    scores = logits.float()
    if temperature != 1.0:
        # As differences: dividing first would overflow at a low temperature.
        scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    cdf = torch.softmax(scores, -1).cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1]
    chosen = torch.searchsorted(cdf, (uniform * total)[:, None], right=True)[:, 0]
    return chosen.where(total.isfinite(), NO_TOKEN)


class _Decode:
    """The rows still being written: their cache, mask and positions."""

    def __init__(
        self,
        cache: "DynamicCache",
        argument: Mapping[str, Any],
        real: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        self.cache = cache
        self.argument = argument  # the cache, under the name that the model gives it
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
            use_cache=True,
            **self.argument,
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
    argument = cache_argument(model, cache)
    out = model(
        ids,
        attention_mask=real,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **argument,
    )
    if group_size > 1:
        cache.batch_repeat_interleave(group_size)

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(group_size, 0)

    decode = _Decode(cache, argument, repeat(real), repeat(positions[:, -1] + 1))
    return decode, repeat(out.logits[:, -1])


@torch.inference_mode()
def sample_completions(
    model: "PreTrainedModel",
    prompt_ids: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    eos_id: int | Iterable[int] | torch.Tensor | None,
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
        eos_id: the id that ends a completion, or several in any container, tensor or array; with
            ``None`` or -1 every completion has ``max_new_tokens`` ids.
        pad_id: any id of the vocabulary; it fills what nothing attends to.
        generator: source of randomness, on the model's device; one draw a row and step.

    Returns:
        B * group_size id lists, prompt-major; the end id is included where one was sampled.

    Raises:
        TypeError, ValueError: for an argument that cannot be honoured, by name.
        UserError: where the model's logits are no distribution: NaN or +inf among them, or nothing
            above -inf.
    """
    check_numbers(group_size, max_new_tokens, temperature, generator)
    ends = end_ids(eos_id)
    prompts = check_ids(model, prompt_ids, ends=ends, pad_id=pad_id)
    if not prompts:
        return []
    was_training = model.training
    model.eval()
    try:
        return _decode(
            model, prompts, group_size, max_new_tokens, ends, pad_id, temperature, generator
        )
    finally:
        model.train(was_training)


def _decode(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    group_size: int,
    max_new_tokens: int,
    ends: frozenset[int],
    pad_id: int,
    temperature: float,
    generator: torch.Generator | None,
) -> list[list[int]]:
    decode, logits = _prefill(model, prompts, pad_id, group_size)
    total = len(logits)
    written = torch.full((total, max_new_tokens), pad_id, device=logits.device)
    lengths = torch.full((total,), max_new_tokens, device=logits.device)
    live = torch.ones(total, dtype=torch.bool, device=logits.device)  # over decode.rows
    end_table = torch.tensor(sorted(ends), dtype=torch.int64, device=logits.device)
    for step in range(max_new_tokens):
        uniform = None
        if temperature > 0:
            uniform = torch.rand(
                total, generator=generator, dtype=torch.float64, device=logits.device
            )[decode.rows]
        tokens = choose_tokens(logits, temperature, uniform)
        written[decode.rows, step] = tokens
        broken = live & (tokens == NO_TOKEN)
        ended = live & (tokens[:, None] == end_table).any(1)
        lengths[decode.rows[ended]] = step + 1
        live &= ~ended
        remaining, failed = torch.stack([live.sum(), broken.sum()]).tolist()
        if failed:
            _refuse(logits, broken, decode.rows, step, group_size)
        if remaining == 0 or step + 1 == max_new_tokens:
            break
        if len(live) - remaining >= COMPACT_SHARE * len(live):
            kept = live.nonzero()[:, 0]
            decode.keep(kept)
            tokens, live = tokens[kept], live[kept]
        # A row that ended before may have run into NaN since: nobody reads what it is fed.
        logits = decode.logits(model, tokens.clamp(min=0))
    return [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]


def _refuse(
    logits: torch.Tensor, broken: torch.Tensor, rows: torch.Tensor, step: int, group_size: int
) -> None:
    """Raises with what was seen in the first row that has no distribution."""
    place = int(broken.nonzero()[0, 0])
    row, seen = int(rows[place]), logits[place]
    counts = [int(seen.isnan().sum()), int(seen.isposinf().sum()), int(seen.isfinite().sum())]
    raise UserError(
        f"completion {row} (of prompt {row // group_size}), token {step}: its {len(seen)} logits "
        f"are {counts[0]} NaN, {counts[1]} inf, {counts[2]} finite, wanted finite ones; a weight "
        "of the model is not finite, or its dtype overflows"
    )
