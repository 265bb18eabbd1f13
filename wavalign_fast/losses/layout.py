"""Which ids are text and which are speech."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from wavalign_fast.errors import shown
from wavalign_fast.ops.inputs import can_be_read, check_integers, check_tensor, whole_number

TEXT = 0
SPEECH = 1
Modality = Literal["text", "speech"]


@dataclass(frozen=True, kw_only=True)
class ModalityLayout:
    """Gives every id of a vocabulary exactly one class, ``TEXT`` or ``SPEECH``.

    Ids in the ``speech`` ranges are speech and all others text, except that ``boundary_as`` is the
    class of the ``boundary`` ids and ``eos_as`` that of the ``eos`` ids. The released WavAlign code
    has ``boundary_as="speech"`` and ``eos_as="text"``. With ``eos_as="speech"`` a policy term over
    text leaves the end of the answer to the anchor.

    Args:
        vocab_size: V, the rows of the head.
        speech: half-open ranges [first, end) of ids.
        boundary: ids of the tokens that begin and end audio.
        boundary_as: the class of the boundary ids, "text" or "speech".
        eos: ids that end a sequence.
        eos_as: the class of the eos ids, "text" or "speech".

    Raises:
        ValueError: ranges that overlap, an id outside the vocabulary, an unknown class.
    """

    vocab_size: int
    speech: Sequence[tuple[int, int]]
    boundary: Sequence[int] = ()
    boundary_as: Modality = "speech"
    eos: Sequence[int] = ()
    eos_as: Modality = "text"
    _tables: dict[torch.device, torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        whole_number("vocab_size", self.vocab_size, low=1)
        end_before = 0
        # A copy: a generator can be read only once, and a list may change later. This is the only
        # way to set a field of a frozen dataclass.
        object.__setattr__(self, "speech", self._speech_ranges())
        for first, end in sorted(self.speech):
            if not 0 <= first < end <= self.vocab_size:
                raise ValueError(
                    f"speech range ({first}, {end}): want 0 <= first < end <= {self.vocab_size}"
                )
            if first < end_before:
                raise ValueError(
                    f"speech range ({first}, {end}) overlaps one that ends at {end_before}"
                )
            end_before = end
        for name in ("boundary", "eos"):
            object.__setattr__(self, name, _ids(name, getattr(self, name)))
            for token in getattr(self, name):
                if not 0 <= token < self.vocab_size:
                    raise ValueError(f"{name} id {token} is outside [0, {self.vocab_size})")
            if getattr(self, f"{name}_as") not in ("text", "speech"):
                raise ValueError(
                    f"{name}_as: got {getattr(self, f'{name}_as')!r}, want 'text' or 'speech'"
                )

    def _speech_ranges(self) -> tuple[tuple[int, int], ...]:
        try:
            pairs = tuple((first, end) for first, end in self.speech)
        except (TypeError, ValueError):
            pairs = None
        if pairs is None or any(type(number) is not int for pair in pairs for number in pair):
            raise ValueError(
                f"speech: got {shown(self.speech)}, want ranges of ids ((first, end), ...)"
            )
        return pairs

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        *,
        speech_start: str = "<|audio_0|>",
        boundary: Sequence[str] = ("<|begin_of_audio|>", "<|end_of_audio|>"),
        vocab_size: int | None = None,
        boundary_as: Modality = "speech",
        eos_as: Modality = "text",
    ) -> "ModalityLayout":
        """Reads the ids from a ``transformers`` tokenizer.

        Speech is every id from ``speech_start`` up to ``vocab_size``, as in the released code. The
        numbered speech tokens must be contiguous there, without another token among them.

        Args:
            tokenizer: a tokenizer with ``get_vocab``, ``eos_token_id`` and a length.
            speech_start: the speech token of number 0.
            boundary: the tokens that begin and end audio.
            vocab_size: the rows of the head, padding included; by default the tokenizer's length.
            boundary_as, eos_as: classes, as in ``ModalityLayout``.

        Raises:
            ValueError: a token that is missing, or speech tokens that are not contiguous.
        """
        vocab = tokenizer.get_vocab()
        size = len(tokenizer) if vocab_size is None else vocab_size
        for token in (speech_start, *boundary):
            if token not in vocab:
                raise ValueError(f"the tokenizer has no token {token!r}")
        first = vocab[speech_start]
        prefix, _, suffix = speech_start.partition("0")
        numbered = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
        for token, index in vocab.items():
            match = numbered.fullmatch(token)
            expected = first + int(match[1]) if match else None
            if (index >= first or match) and index != expected:
                wanted = f"an id below {first}" if expected is None else expected
                raise ValueError(
                    f"speech tokens must be contiguous from {speech_start!r} = {first}: "
                    f"{token!r} has id {index}, want {wanted}"
                )
        eos = () if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        return cls(
            vocab_size=size,
            speech=((first, size),),
            boundary=tuple(vocab[token] for token in boundary),
            boundary_as=boundary_as,
            eos=(eos,) if isinstance(eos, int) else tuple(eos),
            eos_as=eos_as,
        )

    def classify(self, ids: torch.Tensor) -> torch.Tensor:
        """The class of every id, ``TEXT`` or ``SPEECH``.

        Args:
            ids: integers of any shape, in [0, vocab_size).

        Returns:
            uint8 of the shape and on the device of ``ids``.

        Raises:
            ValueError: another dtype; on the CPU also an id outside [0, vocab_size). On another
                device the check would wait for the device, and such an id is clamped.
        """
        return self.classify_as("ids", ids)

    def classify_as(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """``classify`` with the caller's name of ``ids`` in its error messages."""
        check_tensor(name, ids)
        check_integers(name, ids)
        if can_be_read(ids):
            bad = ids[(ids < 0) | (ids >= self.vocab_size)]
            if bad.numel() > 0:
                raise ValueError(
                    f"{name}: id {int(bad[0])} is outside the layout [0, {self.vocab_size})"
                )
        else:
            ids = ids.clamp(0, self.vocab_size - 1)
        return self._table(ids.device)[ids.to(torch.int64)]

    def _table(self, device: torch.device) -> torch.Tensor:
        if device not in self._tables:
            table = torch.full((self.vocab_size,), TEXT, dtype=torch.uint8, device="cpu")
            for first, end in self.speech:
                table[first:end] = SPEECH
            for name in ("boundary", "eos"):
                kind = SPEECH if getattr(self, f"{name}_as") == "speech" else TEXT
                table[list(getattr(self, name))] = kind
            table = table.to(device)
            if type(table) is not torch.Tensor:  # a fake one, valid during this trace only
                return table
            self._tables[device] = table
        return self._tables[device]


def _ids(name: str, ids: Any) -> tuple[int, ...]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise ValueError(f"{name}: got {shown(ids)}, want a sequence of ids")
    return tuple(whole_number(f"{name} id", token, low=0) for token in ids)
