"""Compares texts by their words, so that case, punctuation and markup do not matter."""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = frozenset(("a", "an", "the"))
MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm)\b|[*_`$\\{}]")
_ACCENTS = re.compile("[\u0300-\u036f]")
_IN_NUMBERS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# Writing without spaces: each sign is a word. Han, kana, Thai, Lao, Khmer.
_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff"
_WORDS = re.compile(rf"[{_SIGNS}]|\d+(?:\.\d+)?|[^\W\d_{_SIGNS}]+", re.UNICODE)


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without accents, punctuation and articles.

    Numbers are words of their own, without separators of thousands: ``"1,000 m" -> ["1000", "m"]``.
    Where a script has no spaces, each sign is a word. A text of articles alone keeps them.
    """
    plain = unicodedata.normalize("NFKD", text).casefold().replace("’", "'")
    plain = unicodedata.normalize("NFC", _ACCENTS.sub("", plain))
    plain = _IN_NUMBERS.sub("", plain.replace("'", ""))
    found = _WORDS.findall(plain)
    return [word for word in found if word not in ARTICLES] or found


def contains(text: Sequence[str], part: Sequence[str]) -> bool:
    """Whether the words of ``part`` follow each other in ``text``; never for an empty part."""
    size = len(part)
    wanted = list(part)
    return size > 0 and any(
        list(text[start : start + size]) == wanted for start in range(len(text) - size + 1)
    )


def without_markup(text: str) -> str:
    """Returns a text without the marks of Markdown and LaTeX that may stand around a letter."""
    return " ".join(MARKUP.sub(" ", text).split())


def word_errors(wanted: Sequence[str], given: Sequence[str]) -> int:
    """Returns the least number of words to replace, leave out or add that turns one into another.

    Levenshtein's distance over words, as word error rates count it.
    """
    row = list(range(len(given) + 1))
    for place, word in enumerate(wanted, start=1):
        before, row[0] = row[0], place
        for other, heard in enumerate(given, start=1):
            before, row[other] = (
                row[other],
                min(row[other] + 1, row[other - 1] + 1, before + (word != heard)),
            )
    return row[-1]
