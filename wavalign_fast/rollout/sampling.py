"""Samples from any Hugging Face causal LM: one prefill per prompt, one decode for all rows."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

import torch

from wavalign_fast.models import PromptEmbeddings, TwoStreams
from wavalign_fast.rollout.checks import (
    check_draws,
    check_ids,
    check_numbers,
    end_ids,
    refuse_logits,
)
from wavalign_fast.rollout.choice import NO_TOKEN, choose_with_logps
from wavalign_fast.rollout.choice import choose_tokens as choose_tokens  # callers find it here
from wavalign_fast.rollout.lean_decode import LeanDecode
from wavalign_fast.rollout.plain_decode import PlainDecode
from wavalign_fast.rollout.prefill import Prefix, prefill
from wavalign_fast.rollout.settings import Settings
from wavalign_fast.rollout.static_decode import Decoded, static_decode
from wavalign_fast.rollout.two_streams import sample_lists

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arguments = ParamSpec("Arguments")


class Sampled(NamedTuple):
    """Completions and the log-probs of their ids."""

    ids: list[list[int]]
    """B * group_size lists of ids, grouped by prompt, including the end id if it was sampled."""
    logps: list[torch.Tensor]
    """The log-prob of each id under the sampler, softmax(logits / temperature), float32 on the CPU,
    one vector a completion. A greedy choice has probability 1, so its log-prob is 0."""


@torch.inference_mode()
def sample_with_logps(
    model: "PreTrainedModel",
    prompt_ids: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    eos_id: int | Iterable[int] | torch.Tensor | None,
    pad_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    draws: torch.Tensor | None = None,
    prompt_embeddings: PromptEmbeddings | None = None,
    streams: TwoStreams | None = None,
) -> Sampled:
    """Samples ``group_size`` completions of each of B prompts in one batched decode.

    Tokens are drawn from softmax(logits / temperature) over the whole vocabulary, without top-k or
    top-p, so at temperature 1 the trainer computes the same log-probs. Temperature 0 is greedy.

    Args:
        model: a causal LM with a Hugging Face forward; it is in eval mode during the call.
        prompt_ids: B sequences of ids, of any lengths.
        eos_id: the id that ends a completion, or several in any container, tensor or array. With
            ``None`` or -1 every completion has ``max_new_tokens`` ids.
        pad_id: any id of the vocabulary, for the padding that nothing attends to.
        generator: source of randomness on the model's device; one draw per row and step. A decode
            on a GPU makes those of all ``max_new_tokens`` steps at once.
        draws: uniform numbers in [0, 1) in place of a generator, float64
            [B * group_size, max_new_tokens]: completion n takes ``draws[n, t]`` for its token t,
            whatever the other completions are. ``rollout.draws.uniforms`` makes them.
        prompt_embeddings: the vectors that prompts name by ids behind the vocabulary, if any do.
        streams: how the ids of two streams stand in one list, for a model that has two; its own
            ids end an answer, not ``eos_id``.

    Raises:
        TypeError, ValueError: an argument is unusable; the message names it.
        UserError: the model's logits are not a distribution: NaN or +inf among them, or nothing
            above -inf.
    """
    check_numbers(group_size, max_new_tokens, temperature, generator)
    if streams is not None:
        settings = Settings(group_size, max_new_tokens, frozenset(), temperature)
        return Sampled(
            *sample_lists(model, prompt_ids, streams, settings, generator, draws, prompt_embeddings)
        )
    ends = end_ids(eos_id)
    prompts = check_ids(
        model,
        prompt_ids,
        ends=ends,
        pad_id=pad_id,
        vectors=0 if prompt_embeddings is None else len(prompt_embeddings),
    )
    if draws is not None:
        check_draws(draws, (len(prompts) * group_size, max_new_tokens), temperature, generator)
        draws = draws.to(model.device)
    if not prompts:
        return Sampled([], [])
    settings = Settings(group_size, max_new_tokens, ends, temperature)
    was_training = model.training
    model.eval()
    try:
        prefix = prefill(model, prompts, pad_id, prompt_embeddings)
        static = static_decode(model, prefix, settings)
        if static is None:
            decoded = _decode(model, prefix, settings, generator, draws)
        else:
            if draws is None and temperature > 0:
                steps = range(max_new_tokens)
                total = len(prompts) * group_size
                draws = torch.stack([_drawn(total, generator, prefix) for _ in steps], 1)
            decoded = static(model, prefix, draws)
    finally:
        model.train(was_training)
    lengths = decoded.lengths.tolist()
    return Sampled(
        [row[:length] for row, length in zip(decoded.ids.tolist(), lengths, strict=True)],
        [row[:length] for row, length in zip(decoded.logps.cpu(), lengths, strict=True)],
    )


def _decode(
    model: "PreTrainedModel",
    prefix: Prefix,
    settings: Settings,
    generator: torch.Generator | None,
    draws: torch.Tensor | None,
) -> Decoded:
    """Decodes token by token, asks after each for ends and failures, and drops ended rows."""
    group_size, max_new_tokens, ends, temperature = settings
    logits = prefix.logits.repeat_interleave(group_size, 0)
    total = len(logits)
    rows = torch.arange(total, device=logits.device)  # that are being decoded
    decode = LeanDecode.of(model, prefix, group_size, max_new_tokens) or PlainDecode(
        model, prefix, group_size
    )
    written = torch.zeros((total, max_new_tokens), dtype=torch.int64, device=logits.device)
    logps = torch.zeros((total, max_new_tokens), device=logits.device)
    lengths = torch.full((total,), max_new_tokens, device=logits.device)
    live = torch.ones(total, dtype=torch.bool, device=logits.device)  # over rows
    end_table = torch.tensor(sorted(ends), dtype=torch.int64, device=logits.device)
    for step in range(max_new_tokens):
        uniform = None
        if draws is not None:
            uniform = draws[rows, step]
        elif temperature > 0:
            uniform = _drawn(total, generator, prefix)[rows]
        tokens, token_logps = choose_with_logps(logits, temperature, uniform)
        written[rows, step] = tokens
        logps[rows, step] = token_logps
        broken = live & (tokens == NO_TOKEN)
        ended = live & (tokens[:, None] == end_table).any(1)
        lengths[rows[ended]] = step + 1
        live &= ~ended
        remaining, failed = torch.stack([live.sum(), broken.sum()]).tolist()
        if failed:
            place = int(broken.nonzero()[0, 0])
            refuse_logits(logits[place], int(rows[place]), step, group_size)
        if remaining == 0 or step + 1 == max_new_tokens:
            break
        if remaining < len(live) and len(live) - remaining >= decode.drop_share * len(live):
            kept = live.nonzero()[:, 0]
            decode.keep(kept)
            rows, tokens, live = rows[kept], tokens[kept], live[kept]
        # A finished row may have NO_TOKEN; feed it any id, because its output is not used.
        logits = decode.logits(tokens.clamp(min=0))
    return Decoded(written, logps, lengths)


def _drawn(rows: int, generator: torch.Generator | None, prefix: Prefix) -> torch.Tensor:
    """A uniform number a row for one token, float64 [N]."""
    device = prefix.logits.device
    return torch.rand(rows, generator=generator, dtype=torch.float64, device=device)


def _ids_only(sample: Callable[Arguments, Sampled]) -> Callable[Arguments, list[list[int]]]:
    @functools.wraps(sample, assigned=())
    def sample_completions(*args: Arguments.args, **options: Arguments.kwargs) -> list[list[int]]:
        """Samples completions like ``sample_with_logps``, and returns their ids only."""
        return sample(*args, **options).ids

    return sample_completions


sample_completions = _ids_only(sample_with_logps)
