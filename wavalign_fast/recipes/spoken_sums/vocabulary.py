"""Words, number words and token ids of the spoken-sums task.

Ids: specials and words first (text), then 256 speech codes, then pad rows up to a multiple of 8.
"""

from collections.abc import Iterable, Sequence

from wavalign_fast.errors import shown

# fmt: off
SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
TENS = (
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)
# fmt: on
ANSWER_PREFIX = "the answer is"

SPECIAL = ("<pad>", "<eos>", "<user>", "<asst>", "<boa>", "<eoa>")
WORDS = (
    *SPECIAL,
    *ANSWER_PREFIX.split(),
    "plus",
    *SMALL,
    *TENS,
)
IDS = {word: index for index, word in enumerate(WORDS)}
PAD, EOS, USER, ASSISTANT, BEGIN_AUDIO, END_AUDIO = range(len(SPECIAL))

SPEECH_START = len(WORDS)
NUM_CODES = 256
SPEECH_END = SPEECH_START + NUM_CODES
VOCAB_SIZE = -(-SPEECH_END // 8) * 8


def number_words(number: int) -> str:
    """``42 -> "forty two"`` for 0 to 99."""
    if not 0 <= number < 100:
        raise ValueError(f"number is {number}, wanted 0 to 99")
    if number < 20:
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] if ones == 0 else f"{TENS[tens - 2]} {SMALL[ones]}"


NUMBERS = {number_words(number): number for number in range(100)}


def encode_words(text: str) -> list[int]:
    """Returns the token ids of a text; raises ``ValueError`` for an unknown word."""
    ids = []
    for word in text.split():
        if word not in IDS or IDS[word] <= END_AUDIO:
            raise ValueError(
                f"unknown word {shown(word)} in {shown(text)}, wanted number words, 'plus' or "
                f"{ANSWER_PREFIX!r}"
            )
        ids.append(IDS[word])
    return ids


def encode_prompt(prompt: str) -> tuple[int, ...]:
    """Returns ``"eighty seven plus six"`` as a user turn, followed by the assistant's token."""
    return (USER, *encode_words(prompt), ASSISTANT)


def encode_codes(codes: Iterable[int]) -> list[int]:
    """Returns speech codes (0 to 255) as token ids."""
    return [SPEECH_START + code for code in codes]


def split_answer(ids: Sequence[int]) -> tuple[str, list[int]]:
    """Splits an interleaved answer into text and speech codes, up to its end-of-sequence id."""
    words, codes = [], []
    for token in ids:
        if token == EOS:
            break
        if SPEECH_START <= token < SPEECH_END:
            codes.append(token - SPEECH_START)
        elif END_AUDIO < token < SPEECH_START:
            words.append(WORDS[token])
    return " ".join(words), codes
