"""Reads the choice out of an answer: a letter, or yes or no. What cannot be read is ``None``."""

import re
import string
import unicodedata
from collections.abc import Sequence

from wavalign_fast.data.words import contains, without_markup, words

LETTERS = string.ascii_uppercase
YES, NO = "yes", "no"
_QUOTES = str.maketrans({"“": '"', "”": '"', "\u2018": "'", "\u2019": "'", "。": ".", "、": ","})
_NOUN = r"(?:answer|option|choice|response|solution|statement|sentence|order)"
# "the answer is (B)", "the correct option would be B", "Answer: B".
_SAYS = (
    rf"\b{_NOUN}\b[^.?!\n]{{0,60}}?(?:\b(?:is|be|was)\b|:)"
    r"\s*(?:most likely|likely|probably|therefore|clearly|simply)?"
)
_CHOOSES = r"\b(?:choose|chose|select|pick|go with|going with|say)\b"
_CHINESE = r"(?:答案(?:应该|就)?(?:是|为|选)?|应该选|我?选择?)"
_NAMED = r"\s*:?\s*(?:(?:option|choice|answer|letter|选项)\s*)?[(\[\"']?"
_ALONE = r"(?![A-Za-z0-9'])"
_CLAUSE_ENDS = re.compile(r"[)\]\"']|\s*(?:[.,:;!]|$)")
_NOT_ARTICLE = re.compile(rf"{_CLAUSE_ENDS.pattern}|\s+(?:or|and|is|because|would|seems|but)\b")
_OR = re.compile(r"[)\]\"']?\s+or\b")
_POLARITY = re.compile(
    r"\b(?:(?P<yes>yes|true|correct|plausible)|(?P<no>no|false|incorrect|implausible))\b"
    r"|(?P<no_zh>不是|不对|错误|否)|(?P<yes_zh>正确|是的|对的)"
)
_NEGATED = re.compile(
    r"\b(?:not|isn't) (?:very |really |entirely |quite |a )?(true|correct|plausible)\b"
)
_OPPOSITES = {"true": "false", "correct": "incorrect", "plausible": "implausible"}


def read_letter(answer: str, choices: Sequence[str] = (), *, count: int = 4) -> str | None:
    """Returns the letter that an answer chooses, in upper case, or ``None`` if it is not clear.

    In this order: the answer is a letter; it begins with one and a mark, as ``"B."``; it says what
    the answer is, the last time if several times; one letter alone stands in it; one choice alone
    stands in it. An article ``"A"`` is no letter.

    Args:
        choices: texts of the choices, the first of which is A.
        count: number of choices where their texts are not given.
    """
    letters = LETTERS[: len(choices) or count]
    text = _plain(answer)
    one = f"[{letters}{letters.lower()}]"
    if found := re.fullmatch(rf"[(\[\"']?({one})[)\]\"']?[.,:;!]?", text):
        return found[1].upper()
    # Not "B, C and D are good".
    if found := re.match(rf"[(\[\"']?({one})[\]\"']?[).:,](?!\s*[(\[]?{one}\b)", text):
        return found[1].upper()
    said = _said(text, one)
    return said or _single_letter(text, letters) or _single_choice(text, choices)


def read_yes_or_no(answer: str) -> str | None:
    """Returns ``"yes"`` or ``"no"``, or ``None`` if the answer says neither or both.

    In this order: the first word is one; the text says that the answer is one, the last time; only
    one of them stands in it. Other words count too: true, correct, plausible, and their opposites.
    """
    text = _NEGATED.sub(lambda found: _OPPOSITES[found[1]], _plain(answer).casefold())
    verdicts = [*_POLARITY.finditer(text)]
    if not verdicts:
        return None
    first = verdicts[0]
    if not text[: first.start()].strip(" \"'(.,:"):
        return _polarity(first)
    stated = [
        verdict
        for verdict in verdicts
        if re.search(rf"(?:{_SAYS}|答案是?)\s*[\"'(]*$", text[: verdict.start()])
    ]
    if stated:
        return _polarity(stated[-1])
    seen = {_polarity(verdict) for verdict in verdicts}
    return seen.pop() if len(seen) == 1 else None


def _plain(answer: str) -> str:
    """Returns an answer without markup, and with marks of ASCII."""
    return without_markup(unicodedata.normalize("NFKC", answer).translate(_QUOTES))


def _polarity(verdict: "re.Match[str]") -> str:
    return YES if verdict["yes"] or verdict["yes_zh"] else NO


def _said(text: str, one: str) -> str | None:
    """Returns the letter that the last statement of this kind names."""
    form = rf"(?i:{_SAYS}|{_CHOOSES}|{_CHINESE}){_NAMED}({one}){_ALONE}"
    found = []
    for match in re.finditer(form, text):
        rest = text[match.end() :]
        ends = _CLAUSE_ENDS.match(rest)
        # Not an article, as in "the answer is a dog", and not one of two, as in "B or C".
        if (ends or (match[1].isupper() and match[1] != "A")) and not _OR.match(rest):
            found.append(match)
    # "Option B is the correct one".
    capital = one[1 : len(one) // 2]
    backwards = (
        rf"[(\"']?(?<![A-Za-z0-9'])([{capital}])[)\"']?\s*(?:is|would be)\s+(?:the\s+)?"
        r"(?:correct|right|best|most)"
    )
    found += re.finditer(backwards, text)
    return max(found, key=lambda match: match.start(1))[1].upper() if found else None


def _single_letter(text: str, letters: str) -> str | None:
    """Returns the one letter that stands alone, in brackets or as a capital."""
    if re.search(rf"\b[{letters}][)\]]? or [(\[]?[{letters}]{_ALONE}", text):
        return None
    bracketed = re.findall(rf"[(\[]([{letters}{letters.lower()}])[)\]]", text)
    capitals = [
        match[0]
        for match in re.finditer(rf"(?<![A-Za-z0-9'])[{letters}]{_ALONE}", text)
        if match[0] not in "AI" or _NOT_ARTICLE.match(text[match.end() :])
    ]
    for found in (bracketed, capitals):
        if seen := {letter.upper() for letter in found}:
            return seen.pop() if len(seen) == 1 else None
    return None


def _single_choice(text: str, choices: Sequence[str]) -> str | None:
    """Returns the letter of the one choice whose words stand in the text.

    Where one choice is part of another, as "light" of "light and heat", the longer one counts.
    """
    said, texts = words(text), [words(choice) for choice in choices]
    found = [index for index, choice in enumerate(texts) if contains(said, choice)]
    longest = [
        index
        for index in found
        if not any(len(texts[other]) > len(texts[index]) and contains(texts[other], texts[index])
                   for other in found)
    ]  # fmt: skip
    return LETTERS[longest[0]] if len(longest) == 1 else None
