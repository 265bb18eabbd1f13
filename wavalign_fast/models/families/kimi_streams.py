"""The two streams of Kimi-Audio's answers: which ids are forced.

The loop of inference fills some positions in: blanks of the audio stream before the speech begins,
and blanks of the text stream after ``text_eos``. Forced ids are no decisions of the model, so no
log-prob of theirs is in any loss.
"""

from collections.abc import Sequence

from wavalign_fast.models.families.interface import FamilyLayout

DELAY = 6
"""Positions before the speech of an answer. Checkpoints say 5; the inference code has 6."""


def decisions(
    layout: FamilyLayout, text: Sequence[int], audio: Sequence[int], *, speech: bool = True
) -> tuple[list[bool], list[bool]]:
    """Tells which ids of a sampled answer the model has chosen itself.

    Args:
        text, audio: the ids after the prompt, of the same length.
        speech: whether the answer was to be spoken; otherwise the whole audio stream is forced.

    Returns:
        A mask of the text, up to ``text_eos`` and with it, and one of the audio, from the sixth
        position on up to the id that ends the answer and with it.

    Raises:
        ValueError: the streams differ in length.
    """
    if len(text) != len(audio):
        raise ValueError(f"{len(text)} text ids and {len(audio)} audio ids, want as many of both")
    ended = _first(text, (layout.named["text_eos"],))
    over = DELAY + _first(audio[DELAY:], layout.stop) if speech else -1
    chosen = [place <= ended for place in range(len(text))]
    return chosen, [DELAY <= place <= over for place in range(len(audio))]


def _first(ids: Sequence[int], ends: Sequence[int]) -> int:
    """Returns the place of the first of ``ends``, or the length if there is none."""
    return next((place for place, index in enumerate(ids) if index in ends), len(ids))
