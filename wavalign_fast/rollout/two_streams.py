"""Samples answers in two streams at once: text and audio of Kimi-Audio."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.models import PromptEmbeddings, StreamBlock, TwoStreams
from wavalign_fast.models.families.interface import FamilyLayout, Prompt
from wavalign_fast.models.families.kimi_streams import DELAY
from wavalign_fast.rollout.checks import (
    check_draws,
    check_ids,
    check_numbers,
    check_prompts,
    refuse_logits,
)
from wavalign_fast.rollout.choice import NO_TOKEN, choose_with_logps
from wavalign_fast.rollout.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wavalign_fast.models.families.kimi_model import KimiAudioModel


class HeardPrompt(NamedTuple):
    """A prompt with the vectors of its continuous audio."""

    text: Sequence[int]
    audio: Sequence[int]
    """The ids of the other stream, at the same positions."""
    places: Tensor | None = None
    """int64 [E], the positions that have vectors."""
    vectors: Tensor | None = None
    """[E, H]."""

    @classmethod
    def of(cls, prompt: Prompt, vectors: Sequence[Tensor] = ()) -> "HeardPrompt":
        """Returns a family's prompt.

        Args:
            vectors: [n, H] of each audio that the spans name by its number; more than a span takes
                are left.

        Raises:
            UserError: an audio has fewer vectors than its spans take.
        """
        own, spans = (prompt.ids, prompt.second_ids or ()), prompt.spans
        if not spans:
            return cls(*own)
        for span in spans:
            given = len(vectors[span.audio]) if span.audio < len(vectors) else 0
            if given < span.offset + span.count:
                raise UserError(
                    f"audio {span.audio} has {given} vectors, wanted {span.offset + span.count} or "
                    "more"
                )
        places = [torch.arange(span.first, span.first + span.count) for span in spans]
        parts = [vectors[s.audio][s.offset : s.offset + s.count] for s in spans]
        return cls(*own, torch.cat(places), torch.cat(parts))

    @classmethod
    def of_list(
        cls, ids: Sequence[int], streams: TwoStreams, embeddings: PromptEmbeddings | None
    ) -> "HeardPrompt":
        """Returns a prompt whose two streams stand in one list of ids."""
        block: Any = torch.tensor([ids])
        part = StreamBlock.of(block if embeddings is None else embeddings.fill(block), streams)
        assert isinstance(part.text, Tensor)
        return cls(part.text[0].tolist(), part.audio[0].tolist(), part.places, part.vectors)


class SampledStreams(NamedTuple):
    """B * group_size answers, grouped by prompt; each has as many ids in both streams."""

    text: list[list[int]]
    audio: list[list[int]]
    text_logps: list[Tensor]
    """Log-probs under softmax(logits / temperature), float32 on the CPU, one vector an answer. 0
    for forced ids, which ``decisions`` tells, and for greedy ones."""
    audio_logps: list[Tensor]


@torch.inference_mode()
def sample_two_streams(
    model: "KimiAudioModel",
    prompts: Sequence[HeardPrompt],
    layout: FamilyLayout,
    *,
    group_size: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    draws: Tensor | None = None,
    speech: bool = True,
) -> SampledStreams:
    """Samples ``group_size`` answers of each of B prompts, in one batch.

    The first six ids of the audio are blanks, and so is the text behind ``text_eos``. A spoken
    answer ends with an id of ``layout.stop`` in the audio; one that is not, with ``text_eos``, and
    its audio is blank.

    Args:
        draws: uniform numbers in [0, 1), float64 [B * group_size, 2 * max_new_tokens]: answer n
            takes ``draws[n, 2 t]`` for text id t and the next one for audio id t. Needed unless
            the temperature is 0 (greedy).

    Raises:
        TypeError, ValueError: an argument is unusable; the message names it.
        UserError: logits are not a distribution.
    """
    check_numbers(group_size, max_new_tokens, temperature, None)
    total = len(prompts) * group_size
    if draws is not None:
        check_draws(draws, (total, 2 * max_new_tokens), temperature, None)
        draws = draws.to(model.device)
    elif temperature > 0:
        raise ValueError(f"no draws at temperature {temperature}, wanted some, or temperature 0")
    blank = layout.named["text_blank"]
    for streams in zip(*((heard.text, heard.audio) for heard in prompts), strict=True):
        check_ids(model, streams, ends=frozenset(layout.stop), pad_id=blank)
    if not prompts:
        return SampledStreams([], [], [], [])
    was_training = model.training
    model.eval()
    try:
        decode = _Decode(model, prompts, blank, group_size)
        return _decoded(decode, layout, max_new_tokens, temperature, draws, speech, group_size)
    finally:
        model.train(was_training)


def sample_lists(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    streams: TwoStreams,
    settings: Settings,
    generator: torch.Generator | None,
    draws: Tensor | None,
    prompt_embeddings: PromptEmbeddings | None,
) -> tuple[list[list[int]], list[Tensor]]:
    """Samples spoken answers whose streams stand in one list, two ids for each position.

    Args:
        prompts: lists of ids, of an even length.
        settings: its ``max_new_tokens`` are ids of a list, two for each position; an odd one is
            left out. Its ``ends`` are not used.
        generator: source of randomness without draws.
        draws: as for ``sample_two_streams``, [B * group_size, max_new_tokens].

    Returns:
        The lists and the log-prob of each id, float32 on the CPU; 0 for forced ids.

    Raises:
        TypeError, ValueError: as ``sample_two_streams``; or a length of a single id.
        UserError: logits are not a distribution.
    """
    group_size, length, _, temperature = settings
    if length < 2:
        raise ValueError(f"max_new_tokens is {length}, wanted at least 2: a position has two ids")
    vectors = 0 if prompt_embeddings is None else len(prompt_embeddings)
    prompts = check_prompts(prompts, streams.layout.vocab_size, vectors)
    positions = length // 2
    if draws is None and temperature > 0:
        shape = len(prompts) * group_size, length
        draws = torch.rand(shape, generator=generator, dtype=torch.float64, device=model.device)
    found = sample_two_streams(
        cast("KimiAudioModel", model),
        [HeardPrompt.of_list(ids, streams, prompt_embeddings) for ids in prompts],
        streams.family,
        group_size=group_size,
        max_new_tokens=positions,
        temperature=temperature,
        draws=None if draws is None else draws[:, : 2 * positions],
    )
    lists = [streams.answer(*ids) for ids in zip(found.text, found.audio, strict=True)]
    logps = zip(found.text_logps, found.audio_logps, strict=True)
    return lists, [torch.stack(both, 1).flatten() for both in logps]


class _Decode:
    """The rows that are being decoded: caches, mask and positions, padded on the left."""

    def __init__(
        self, model: "KimiAudioModel", prompts: Sequence[HeardPrompt], blank: int, group_size: int
    ) -> None:
        self.model = model
        lengths = [len(heard.text) for heard in prompts]
        width, device = max(lengths), model.device
        ids, second, places, vectors = [], [], [], []
        for number, (heard, length) in enumerate(zip(prompts, lengths, strict=True)):
            pad = [blank] * (width - length)
            ids.append([*pad, *heard.text])
            second.append([*pad, *heard.audio])
            if heard.places is not None and heard.vectors is not None:
                places.append(heard.places + number * width + len(pad))
                vectors.append(heard.vectors)
        real = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
        self.real = real.to(device)
        self.caches = model.new_caches()
        states = model(
            torch.tensor(ids, device=device),
            torch.tensor(second, device=device),
            places=torch.cat(places).to(device) if places else None,
            vectors=torch.cat(vectors).to(device) if vectors else None,
            caches=self.caches,
            attention_mask=self.real,
            position_ids=(self.real.cumsum(1) - 1).clamp_(min=0),
        )
        for cache in self.caches if group_size > 1 else ():
            cache.batch_repeat_interleave(group_size)
        self.real = self.real.repeat_interleave(group_size, 0)
        self.positions = self.real.sum(1)
        self.logits = [logits.repeat_interleave(group_size, 0) for logits in self._heads(states)]

    def feed(self, text: Tensor, audio: Tensor) -> None:
        """Feeds an id of each stream per row, [N] each, and computes the next logits."""
        self.real = torch.cat([self.real, self.real.new_ones(len(self.real), 1)], 1)
        states = self.model(
            text[:, None],
            audio[:, None],
            caches=self.caches,
            attention_mask=self.real,
            position_ids=self.positions[:, None],
        )
        self.positions = self.positions + 1
        self.logits = self._heads(states)

    def _heads(self, states: tuple[Tensor, Tensor]) -> list[Tensor]:
        heads = (self.model.lm_head, self.model.mimo_output)
        return [head(hidden[:, -1]) for head, hidden in zip(heads, states, strict=True)]


def _decoded(
    decode: _Decode,
    layout: FamilyLayout,
    max_new_tokens: int,
    temperature: float,
    draws: Tensor | None,
    speech: bool,
    group_size: int,
) -> SampledStreams:
    blank, text_end = layout.named["text_blank"], layout.named["text_eos"]
    rows, device = len(decode.positions), decode.positions.device
    stops = torch.tensor(layout.stop if speech else (text_end,), device=device)
    ids = torch.full((2, rows, max_new_tokens), blank, device=device)
    logps = torch.zeros((2, rows, max_new_tokens), device=device)
    lengths = torch.full((rows,), max_new_tokens, device=device)
    text_over = torch.zeros(rows, dtype=torch.bool, device=device)
    over = torch.zeros_like(text_over)
    for step in range(max_new_tokens):
        silent = torch.full_like(over, step < DELAY or not speech)
        for stream, forced in enumerate((text_over, silent)):
            uniform = None if draws is None else draws[:, 2 * step + stream]
            chosen = choose_with_logps(decode.logits[stream], temperature, uniform)
            broken = (chosen.ids == NO_TOKEN) & ~forced & ~over
            if bool(broken.any()):
                row = int(broken.nonzero()[0, 0])
                refuse_logits(decode.logits[stream][row], row, step, group_size)
            free = ~forced & ~over
            ids[stream, :, step] = torch.where(free, chosen.ids, blank)
            logps[stream, :, step] = torch.where(free, chosen.logps, 0.0)
        text_over = text_over | (ids[0, :, step] == text_end)
        ended = (ids[1 if speech else 0, :, step, None] == stops).any(1) & ~over
        lengths[ended] = step + 1
        over = over | ended
        if bool(over.all()) or step + 1 == max_new_tokens:
            break
        decode.feed(ids[0, :, step], ids[1, :, step])
    cut = lengths.tolist()
    text, audio = ([row[:n] for row, n in zip(t, cut, strict=True)] for t in ids.tolist())
    own = [[row[:n] for row, n in zip(t, cut, strict=True)] for t in logps.cpu()]
    return SampledStreams(text, audio, own[0], own[1])
