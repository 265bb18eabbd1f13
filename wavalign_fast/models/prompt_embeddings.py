"""Vectors in prompts, such as those of an audio encoder, where text has rows of the embedding."""

import bisect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.models.packing import PackedRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT_BYTES = 2**30
"""Vectors that stay in memory. Those of other clips are loaded again when a prompt needs them."""

ANY_ID = 0
"""Stands in the ids where a vector is put; its row of the embedding gets no gradient from there."""


@dataclass(frozen=True)
class EmbeddedBlock:
    """A block of rows, in which some positions have a vector in place of an id."""

    block: Tensor | PackedRows
    """int64 [R, L], or packed rows; where a vector is put, the id under it or an arbitrary one."""
    places: Tensor
    """int64 [E], positions in the flattened block, rising."""
    vectors: Tensor
    """[E, H]."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "EmbeddedBlock":
        """Returns the block on ``device``."""
        return replace(
            self,
            block=self.block.to(device, non_blocking=non_blocking),
            places=self.places.to(device, non_blocking=non_blocking),
            vectors=self.vectors.to(device, non_blocking=non_blocking),
        )

    def embedded(self, model: "PreTrainedModel") -> Tensor:
        """Returns the model's inputs, [R, L, H]: rows of its embedding, and the vectors."""
        ids = self.block if isinstance(self.block, Tensor) else self.block.ids
        rows: Tensor = model.get_input_embeddings()(ids)
        if rows.shape[-1] != self.vectors.shape[-1]:
            raise UserError(
                f"prompt embeddings have {self.vectors.shape[-1]} numbers each, wanted "
                f"{rows.shape[-1]}, the model's"
            )
        vectors = self.vectors.to(rows.dtype)
        return rows.flatten(0, 1).index_copy(0, self.places, vectors).view_as(rows)


class PromptEmbeddings:
    """Clips of vectors, named in prompts by ids from ``vocab_size`` on.

    A prompt with such a clip is a list of ids like any other for all that sorts, deals, pads and
    packs rows; ``fill`` puts the vectors in when a block goes to the model. The vectors are
    constants: nothing trains the encoder.

    Args:
        vocab_size: V, the rows of the embedding, padding included.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._starts: list[int] = []
        self._loaders: list[Callable[[], Tensor]] = []
        self._under: list[tuple[int, ...]] = []
        self._ranges: dict[Hashable, range] = {}
        self._end = vocab_size
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        """Returns how many ids have been given out."""
        return self._end - self.vocab_size

    def ids(
        self,
        clip: Hashable,
        length: int,
        load: Callable[[], Tensor],
        under: Sequence[int] = (),
    ) -> range:
        """Returns the ids of the vectors of a clip, the same ones whenever it is named again.

        Args:
            clip: names the clip, such as by a hash of its sound.
            length: n, how many vectors it has.
            load: returns them, [n, H] on the CPU; called when they are needed, perhaps again.
            under: ids that stay in the block under the first vectors, for a model that reads both;
                any id stands under the others.
        """
        if clip not in self._ranges:
            if length < 1:
                raise ValueError(f"clip {clip!r} has {length} vectors, wanted at least 1")
            self._starts.append(self._end)
            self._loaders.append(load)
            self._under.append(tuple(under))
            self._ranges[clip] = range(self._end, self._end + length)
            self._end += length
        return self._ranges[clip]

    def fill(self, block: Tensor | PackedRows) -> Tensor | PackedRows | EmbeddedBlock:
        """Returns the block with its vectors, or the block itself if it names none.

        Args:
            block: on the CPU.
        """
        ids = block if isinstance(block, Tensor) else block.ids
        flat = ids.flatten()
        places = (flat >= self.vocab_size).nonzero().flatten()
        if len(places) == 0:
            return block
        named = flat[places].tolist()
        under = torch.tensor([self._id_under(index) for index in named])
        plain = flat.index_copy(0, places, under).view_as(ids)
        return EmbeddedBlock(
            block=plain if isinstance(block, Tensor) else replace(block, ids=plain),
            places=places,
            vectors=self._vectors(named),
        )

    def _id_under(self, index: int) -> int:
        clip = bisect.bisect_right(self._starts, index) - 1
        place = index - self._starts[clip]
        return self._under[clip][place] if place < len(self._under[clip]) else ANY_ID

    def _vectors(self, ids: Sequence[int]) -> Tensor:
        """Returns the vectors of ids, [E, H]; a run of ids of one clip is one copy."""
        parts = []
        first = 0
        while first < len(ids):
            clip = bisect.bisect_right(self._starts, ids[first]) - 1
            vectors = self._clip(clip)
            begin = ids[first] - self._starts[clip]
            length = 1
            while (
                first + length < len(ids)
                and begin + length < len(vectors)
                and ids[first + length] == ids[first] + length
            ):
                length += 1
            parts.append(vectors[begin : begin + length])
            first += length
        return torch.cat(parts)

    def _clip(self, clip: int) -> Tensor:
        if clip in self._kept:
            self._kept.move_to_end(clip)
            return self._kept[clip]
        vectors = self._loaders[clip]().detach()
        end = self._starts[clip + 1] if clip + 1 < len(self._starts) else self._end
        wanted = end - self._starts[clip]
        if vectors.ndim != 2 or len(vectors) != wanted:
            raise UserError(
                f"prompt embeddings: a clip of the shape {list(vectors.shape)} was loaded, wanted "
                f"[{wanted}, H]"
            )
        self._kept[clip] = vectors
        self._kept_bytes += vectors.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= dropped.nbytes
        return vectors
