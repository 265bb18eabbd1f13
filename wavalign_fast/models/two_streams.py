"""Two streams as one list of ids, so that all that deals, pads and exchanges rows stays as it is.

A position of a model with two streams, such as Kimi-Audio, has a text id and an audio id. In a list
they stand one after the other: text, audio, text, audio, ... Ids of the audio are V higher, where V
is the rows of each head, and an id that nobody chose is ``forced``, 2V: the model reads a blank
there, and no loss has it. Ids from 2V + 1 on name vectors, as ``PromptEmbeddings`` has them.

Each id of such a list is predicted one place earlier, as in any causal model: place 2i + 1 has the
text stream's hidden state at position i, which predicts the text id of position i + 1, and place
2i + 2 the audio stream's state at position i, which predicts the audio id there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.losses.layout import Modality
from wavalign_fast.losses.two_heads import TwoHeads
from wavalign_fast.models.families.interface import IGNORE, FamilyLayout, Prompt, Target
from wavalign_fast.models.families.kimi_streams import decisions
from wavalign_fast.models.head import output_head, second_head
from wavalign_fast.models.packing import PackedRows
from wavalign_fast.models.prompt_embeddings import EmbeddedBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TwoStreams:
    """How the ids of a family with two streams stand in one list.

    Args:
        family: the family's ids; it has a second stream.
        eos_as: class of the ids that end an answer, which stand in the second stream. The id that
            ends the text alone is text.
    """

    family: FamilyLayout
    eos_as: Modality = "speech"

    @property
    def rows(self) -> int:
        """V, the rows of each head and of the embedding."""
        return self.family.stream.vocab_size

    @property
    def forced(self) -> int:
        """Stands where an id was forced; any stream."""
        return 2 * self.rows

    @property
    def blank(self) -> int:
        """What the model reads where an id was forced."""
        return self.family.named["text_blank"]

    @cached_property
    def layout(self) -> ModalityLayout:
        """The class of each id of a list: the second stream's are speech."""
        return ModalityLayout(
            vocab_size=2 * self.rows + 1,
            speech=((self.rows, 2 * self.rows),),
            eos=sorted(self.ends),
            eos_as=self.eos_as,
        )

    @property
    def ends(self) -> frozenset[int]:
        """The ids of a list that end an answer."""
        return frozenset(self.rows + index for index in self.family.stop)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Returns the ids of a prompt, 2P of them, without those of vectors."""
        assert prompt.second_ids is not None
        return _alternating(prompt.ids, [self.rows + index for index in prompt.second_ids])

    def history(self, prompt: Prompt) -> list[int]:
        """Returns the places in ``prompt`` whose ids are labels."""
        assert prompt.second_labels is not None
        labels = _alternating(prompt.labels, prompt.second_labels)
        return [place for place, label in enumerate(labels) if label != IGNORE]

    def target(self, target: Target) -> list[int]:
        """Returns the ids of an answer that was given; those without a label are forced."""
        assert target.second_ids is not None and target.second_labels is not None
        chosen = [[i != IGNORE for i in own] for own in (target.labels, target.second_labels)]
        return self._answer(target.ids, target.second_ids, *chosen)

    def answer(self, text: Sequence[int], audio: Sequence[int]) -> list[int]:
        """Returns the ids of a sampled answer, both streams of the same length."""
        return self._answer(text, audio, *decisions(self.family, text, audio))

    def _answer(
        self,
        text: Sequence[int],
        audio: Sequence[int],
        text_chosen: Sequence[bool],
        audio_chosen: Sequence[bool],
    ) -> list[int]:
        return _alternating(
            [i if own else self.forced for i, own in zip(text, text_chosen, strict=True)],
            [
                self.rows + i if own else self.forced
                for i, own in zip(audio, audio_chosen, strict=True)
            ],
        )

    def apart(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns the text ids and the audio ids of a list; blanks stand for forced ones.

        An id that names a vector is none of either.
        """
        text = [self.blank if index == self.forced else index for index in ids[0::2]]
        audio = [self.blank if i == self.forced else i - self.rows for i in ids[1::2]]
        return text, audio

    def check_model(self, model: "PreTrainedModel") -> None:
        """Raises ``UserError`` unless the model has two heads with a row for each id."""
        second = second_head(model)
        found = [len(output_head(model).weight), 0 if second is None else len(second.weight)]
        if found != [self.rows, self.rows]:
            raise UserError(
                f"model vocabulary: {found[0]} and {found[1]} rows in the two heads, wanted "
                f"{self.rows}, the layout's"
            )


def heads_of(model: "PreTrainedModel") -> TwoHeads:
    """Returns the weights of both heads of a model, each [V, H]; see ``output_head``."""
    second = second_head(model)
    assert second is not None  # a model of two streams
    return TwoHeads(output_head(model).weight, output_head(second).weight)


@dataclass(frozen=True)
class StreamBlock:
    """A block of lists, taken apart for a model of two streams."""

    text: Tensor | PackedRows
    """int64 [R, P], or packed rows [1, P]."""
    audio: Tensor
    """int64, of the shape of the text's ids."""
    places: Tensor | None
    """int64 [E], positions in the flattened rows that have vectors."""
    vectors: Tensor | None
    """[E, H]."""
    states: Tensor
    """int64 [T], for each place of the block: 0 for none, or 1 + the state that predicts the next
    id, in the text's states and then the audio's."""

    @classmethod
    def of(cls, block: Tensor | PackedRows | EmbeddedBlock, streams: TwoStreams) -> "StreamBlock":
        """Takes a block apart, on the CPU. An id without a second one at the end is left out."""
        rows = block.block if isinstance(block, EmbeddedBlock) else block
        ids = rows if isinstance(rows, Tensor) else rows.ids
        flat = ids.flatten()
        if isinstance(rows, Tensor):
            lengths = torch.full((len(ids),), ids.shape[1])
        else:
            lengths = rows.borders.diff().to(torch.int64)
        if len(flat) == 1:  # the idle block: the model must run
            flat = torch.cat([flat, flat])
        starts, pairs = lengths.cumsum(0) - lengths, (lengths // 2).clamp(min=1)
        first = pairs.cumsum(0) - pairs  # the first position of each row
        inside = torch.arange(int(pairs.sum())) - first.repeat_interleave(pairs)
        at = starts.repeat_interleave(pairs) + 2 * inside
        text, audio = flat[at], flat[at + 1] - streams.rows
        text = torch.where(text == streams.forced, streams.blank, text)
        audio = torch.where(audio == streams.forced - streams.rows, streams.blank, audio)
        places = vectors = None
        if isinstance(block, EmbeddedBlock):
            row = torch.searchsorted(starts, block.places, right=True) - 1
            places, vectors = first[row] + (block.places - starts[row]) // 2, block.vectors
        of_row = torch.arange(len(lengths)).repeat_interleave(lengths)
        offset = torch.arange(int(lengths.sum())) - starts[of_row]
        position = first[of_row] + (offset - 1) // 2
        states = 1 + position + torch.where(offset % 2 == 0, len(at), 0)
        if isinstance(rows, Tensor):
            shape = (len(ids), -1)
            given: Tensor | PackedRows = text.view(shape)
        else:
            shape = (1, -1)
            given = PackedRows.of(text.split(pairs.tolist()))
        return cls(
            text=given,
            audio=audio.view(shape),
            places=places,
            vectors=vectors,
            states=torch.where(offset == 0, 0, states),
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "StreamBlock":
        """Returns the block on ``device``."""

        def moved(value: Any) -> Any:
            return None if value is None else value.to(device, non_blocking=non_blocking)

        return StreamBlock(
            *(moved(v) for v in (self.text, self.audio, self.places, self.vectors, self.states))
        )

    def hidden_states(self, model: "PreTrainedModel") -> Tensor:
        """Returns for each place of the block the state that predicts the next id, [T, H].

        The first place of a row predicts nothing that is ever scored; it has zeros.
        """
        given = {"input_ids": self.text}
        if isinstance(self.text, PackedRows):
            given = self.text.model_arguments(model)
        out = model(
            **given,
            second_ids=self.audio,
            places=self.places,
            vectors=self.vectors,
            use_cache=False,
        )
        text, audio = (hidden.flatten(0, 1) for hidden in out)
        every = torch.cat([text.new_zeros(1, text.shape[1]), text, audio])
        return every.index_select(0, self.states)


def _alternating(text: Sequence[int], audio: Sequence[int]) -> list[int]:
    return [index for pair in zip(text, audio, strict=True) for index in pair]
