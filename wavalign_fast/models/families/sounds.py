"""The clips of dialogues as their family takes them: codes, or vectors of its encoder."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import torch

from wavalign_fast.models.families.interface import Audio, Prompt
from wavalign_fast.models.prompt_audio import PromptAudioCache
from wavalign_fast.models.prompt_embeddings import PromptEmbeddings
from wavalign_fast.models.two_streams import TwoStreams


class Sounds:
    """Codes of clips by the codec, and their vectors if the family has a continuous encoder.

    Args:
        codes_of: returns the codes of a WAV file.
        encoder: returns the family's encoder with its cache, ``None`` for a family without one;
            called once, for the first clip of a prompt.
        vocab_size: V, the rows of the embedding; ids from V on name vectors. Of two streams it is
            that of their list.
        streams: how the ids of two streams stand in one list, for a family that has two.
    """

    def __init__(
        self,
        codes_of: Callable[[Path], Sequence[int]],
        encoder: Callable[[], PromptAudioCache | None],
        vocab_size: int,
        streams: TwoStreams | None = None,
    ) -> None:
        self._codes_of = codes_of
        self._encoder = encoder
        self._streams = streams
        self.vectors = PromptEmbeddings(vocab_size)

    @cached_property
    def _vectors_of(self) -> PromptAudioCache | None:
        return self._encoder()

    def codes(self, path: Path) -> Sequence[int]:
        """Returns the codes of a clip."""
        return self._codes_of(path)

    def audio(self, path: Path) -> Audio:
        """Returns a clip of a prompt as its family takes it.

        Its codes are computed when the family asks for them: one with an encoder may not.
        """
        positions: tuple[int, ...] = ()
        if self._vectors_of is not None:
            positions = tuple(map(len, self._vectors_of.embeddings(path)))
        return Audio(codes=_Codes(lambda: self._codes_of(path)), positions=positions)

    def with_vectors(self, prompt: Prompt, paths: Sequence[Path]) -> list[int]:
        """Returns the ids of a prompt, with those of vectors where the family wants them.

        Args:
            paths: the clips of the prompt, in their order.
        """
        ids, step, stream = list(prompt.ids), 1, 0
        if self._streams is not None:  # the codes stand in the second stream, under the vectors
            ids, step, stream = self._streams.prompt(prompt), 2, 1
        for span in prompt.spans:
            first = step * span.first + stream
            own = slice(first, first + step * span.count, step)
            under = ids[own] if self._streams is not None else ()
            named = self._ids_of(paths[span.audio], under)
            ids[own] = named[span.offset : span.offset + span.count]
        return ids

    def _ids_of(self, path: Path, under: Sequence[int]) -> range:
        source = self._vectors_of
        assert source is not None  # a span is of an encoder
        length = sum(map(len, source.embeddings(path)))
        return self.vectors.ids(
            source.path(path.read_bytes()),
            length,
            lambda: torch.cat(source.embeddings(path)),
            under,
        )


class _Codes(Sequence[int]):
    """The codes of a clip, computed when they are first looked at."""

    def __init__(self, compute: Callable[[], Sequence[int]]) -> None:
        self._compute = compute
        self._found: Sequence[int] | None = None

    @property
    def _all(self) -> Sequence[int]:
        if self._found is None:
            self._found = self._compute()
        return self._found

    def __len__(self) -> int:
        return len(self._all)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...

    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        return self._all[place]
