"""Mixes the text and the speech codes of an answer in chunks. The definition is plain Python."""

from collections.abc import Iterator, Sequence
from itertools import chain, repeat

from wavalign_fast.data.host import HOST
from wavalign_fast.errors import UserError, shown


class RatioError(UserError):
    """The sizes of chunks are missing or cannot be followed; no fault of what is to be mixed."""


def interleave(
    text: Sequence[int],
    codes: Sequence[int],
    ratio: Sequence[int],
    *,
    begin: int | None = None,
    end: int | None = None,
) -> list[int]:
    """Puts chunks of text and of speech by turns: text, speech, text, speech, ...

    With ``begin`` and ``end``, each chunk of speech stands between them, there are as many chunks
    as the shorter stream fills, and the last one takes what is left of either stream (VITA-Audio's
    rule). Without them the streams alternate until one is used up, and the other follows
    (GLM-4-Voice's rule). A stream that is empty leaves the other whole.

    Args:
        text: ids of the text.
        codes: ids of the speech.
        ratio: sizes t_1, a_1, t_2, a_2, ... of the chunks; the last pair repeats. A size of speech
            counts ``begin`` and ``end``.
        begin, end: ids around each chunk of speech; both or none.

    Raises:
        RatioError: a ratio that is no pairs, or a size that leaves no id in a chunk.
        ValueError: one of ``begin`` and ``end`` without the other.
    """
    text_sizes, speech_sizes = _sizes(ratio, 0 if begin is None else 2)
    if (begin is None) != (end is None):
        raise ValueError(f"begin {begin} and end {end}: wanted both or none")
    if HOST is not None:
        mixed: list[int] = HOST.interleave(text, codes, text_sizes, speech_sizes, begin, end)
        return mixed
    return _interleave(text, codes, text_sizes, speech_sizes, begin, end)


def _interleave(
    text: Sequence[int],
    codes: Sequence[int],
    text_sizes: Sequence[int],
    speech_sizes: Sequence[int],
    begin: int | None,
    end: int | None,
) -> list[int]:
    if not text:
        return _bounded(codes, begin, end)
    if not codes:
        return list(text)
    texts, speeches = list(_chunks(text, text_sizes)), list(_chunks(codes, speech_sizes))
    last = min(len(texts), len(speeches)) - 1
    pairs = [[*texts[k], *_bounded(speeches[k], begin, end)] for k in range(last)]
    text_left, speech_left = list(chain(*texts[last:])), list(chain(*speeches[last:]))
    if begin is not None:
        pairs.append([*text_left, *_bounded(speech_left, begin, end)])
    else:
        first = len(texts[last])
        pairs.append([*text_left[:first], *speech_left, *text_left[first:]])
    return list(chain(*pairs))


def _sizes(ratio: Sequence[int], bounds: int) -> tuple[list[int], list[int]]:
    if not ratio or len(ratio) % 2:
        raise RatioError(f"ratio {shown(ratio)}: wanted pairs of a text and a speech size")
    text, speech = list(ratio[::2]), [size - bounds for size in ratio[1::2]]
    if min(text) < 1 or min(speech) < 1:
        raise RatioError(
            f"ratio {shown(ratio)}: wanted text sizes of at least 1, and speech sizes of at least "
            f"{bounds + 1}"
        )
    return text, speech


def _chunks(ids: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    first = 0
    for size in chain(sizes, repeat(sizes[-1])):
        if first >= len(ids):
            return
        yield ids[first : first + size]
        first += size


def _bounded(codes: Sequence[int], begin: int | None, end: int | None) -> list[int]:
    if begin is None or end is None or not codes:
        return list(codes)
    return [begin, *codes, end]
