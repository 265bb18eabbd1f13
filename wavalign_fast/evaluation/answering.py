"""The first stage: asks the model. An answer is kept as text, ids, speech codes and its end."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from wavalign_fast.errors import KeyedError, UserError, one_line
from wavalign_fast.evaluation.prompts import Prompt
from wavalign_fast.models import PromptEmbeddings, TwoStreams
from wavalign_fast.models.families.vita_mtp import MtpSampler
from wavalign_fast.rollout import sample_completions, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ENDED, CUT, GIVEN, NOT_ASKED = "end", "length", "given", "not asked"


class Parts(NamedTuple):
    """An answer's ids, split."""

    text: str
    codes: list[int]
    """Speech codes, from 0."""


class Speaker(Protocol):
    """What is needed to talk to a model: how prompts become ids, and ids text and codes."""

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""

    @property
    def pad_id(self) -> int:
        """An id that fills up rows."""

    @property
    def positions(self) -> int:
        """Most ids of prompt and answer together."""

    @property
    def embeddings(self) -> PromptEmbeddings | None:
        """The vectors that prompts name by ids behind the vocabulary, if any do."""

    @property
    def streams(self) -> TwoStreams | None:
        """How the ids of two streams stand in one list, for a model that has two."""

    @property
    def mtp(self) -> MtpSampler | None:
        """What answers in place of the model alone, if anything does."""

    def ids(self, prompt: Prompt) -> list[int]:
        """Returns the ids of a prompt up to the answer; raises ``ValueError`` if it cannot."""

    def parts(self, ids: Sequence[int]) -> Parts:
        """Splits the ids of an answer."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled."""

    max_new_tokens: int = 1024
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of answers that are not greedy. Their numbers depend on the prompt, not on its place."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """The answer to a prompt: a line of ``responses.jsonl``."""

    id: str
    asked: str
    """Digest of what was asked."""
    text: str
    ids: list[int]
    codes: list[int]
    stop: str
    """``end``, ``length`` (cut off at the most tokens), ``given`` or ``not asked``."""
    wav: str | None = None
    """A sound file that came with the answer; speech made from codes is in ``wavs.jsonl``."""
    cause: str | None = None
    """Why the prompt could not be asked."""
    sampling: Mapping[str, Any] | None = None
    weights: str | None = None

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Response":
        """Returns the response of a line; raises ``ValueError`` if a field is missing."""
        fields = cls.__dataclass_fields__
        try:
            return cls(**{name: record[name] for name in fields if name in record})
        except TypeError as error:
            raise ValueError(one_line(error)) from error

    def as_record(self) -> dict[str, Any]:
        """Returns the line as a dict."""
        return asdict(self)


def answers(
    speaker: Speaker,
    load: Callable[[], "PreTrainedModel"],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    rows: int,
    weights: str,
) -> Iterator[list[Response]]:
    """Yields the answers, ``rows`` at a time. The model is loaded when there is one to ask.

    A prompt that the model cannot take, such as one that is too long, gets a response with the
    cause. The rest is asked.
    """
    model = None
    for start in range(0, len(prompts), rows):
        asked: list[tuple[Prompt, list[int]]] = []
        done: list[Response] = []
        for prompt in prompts[start : start + rows]:
            try:
                asked.append((prompt, _ids(speaker, prompt, sampling)))
            except KeyedError:
                raise  # an option or a file is at fault, not the prompt
            except ValueError as error:
                logger.warning("%s: not asked: %s", prompt.where, one_line(error))
                done.append(_not_asked(prompt, one_line(error), weights))
        if asked:
            model = load() if model is None else model
            done += _answered(speaker, model, asked, sampling, weights)
        yield done


def _ids(speaker: Speaker, prompt: Prompt, sampling: Sampling) -> list[int]:
    ids = speaker.ids(prompt)
    room = speaker.positions - sampling.max_new_tokens
    if len(ids) > room:
        raise ValueError(
            f"the prompt has {len(ids)} ids, wanted at most {room}: the model has "
            f"{speaker.positions} positions, {sampling.max_new_tokens} of them for the answer"
        )
    return ids


def _not_asked(prompt: Prompt, cause: str, weights: str) -> Response:
    return Response(
        id=prompt.id, asked=prompt.asked, text="", ids=[], codes=[], stop=NOT_ASKED, cause=cause,
        weights=weights,
    )  # fmt: skip


def _answered(
    speaker: Speaker,
    model: "PreTrainedModel",
    asked: Sequence[tuple[Prompt, list[int]]],
    sampling: Sampling,
    weights: str,
) -> Iterator[Response]:
    draws = None
    if sampling.temperature > 0:
        own = torch.tensor([int(prompt.asked[:8], 16) for prompt, _ in asked])
        draws = uniforms(
            sampling.seed, 0, own, torch.zeros_like(own), torch.arange(sampling.max_new_tokens)
        )
    prompts, most = [ids for _, ids in asked], sampling.max_new_tokens
    if speaker.mtp is not None:
        sampled = speaker.mtp(model, prompts, max_new_tokens=most)
    else:
        sampled = sample_completions(
            model,
            prompts,
            max_new_tokens=most,
            eos_id=speaker.ends,
            pad_id=speaker.pad_id,
            temperature=sampling.temperature,
            draws=draws,
            prompt_embeddings=speaker.embeddings,
            streams=speaker.streams,
        )
    for (prompt, _), ids in zip(asked, sampled, strict=True):
        ended = bool(ids) and ids[-1] in speaker.ends
        text, codes = speaker.parts(ids)
        yield Response(
            id=prompt.id,
            asked=prompt.asked,
            text=text,
            ids=ids,
            codes=codes,
            stop=ENDED if ended else CUT,
            sampling=asdict(sampling),
            weights=weights,
        )


def given_answer(prompt: Prompt) -> Response:
    """Returns the answer that came with a record, from a model that another program asked.

    Raises:
        UserError: it has none.
    """
    if prompt.answer is None:
        raise UserError(f"{prompt.where}: no response, wanted the answer as text, or --model DIR")
    sound = prompt.answer_audio
    return Response(
        id=prompt.id, asked=prompt.asked, text=prompt.answer, ids=[], codes=[], stop=GIVEN,
        wav=None if sound is None else str(sound.resolve()),
    )  # fmt: skip
