"""Problems, their split into training and held-out, and spoken answers as interleaved ids."""

import functools
import random
from collections.abc import Sequence

from wavalign_fast.data.records import Example
from wavalign_fast.errors import shown
from wavalign_fast.recipes.spoken_sums import vocabulary as vocab
from wavalign_fast.recipes.spoken_sums.assets import NUM_ANSWERS, SpeechAssets

TEXT_CHUNK = 2
SPEECH_CHUNK = 8
NUM_TRAIN = 610
MAX_PROMPT = 64
"""Maximum ids of a prompt; the model has 256 positions for prompt and answer."""
WRONG_SHARE = 0.4
"""Share of the imperfect demonstrations whose answer is drawn at random."""


def answer_text(number: int) -> str:
    """``"the answer is ninety three"``"""
    return f"{vocab.ANSWER_PREFIX} {vocab.number_words(number)}"


def make_example(prompt: str, number: int, *, id: str) -> Example:
    """Makes an example; raises ``ValueError`` for an unknown word or a prompt that is too long."""
    ids = vocab.encode_prompt(prompt)
    if len(ids) > MAX_PROMPT:
        raise ValueError(f"{shown(prompt)} is {len(ids)} ids long, wanted at most {MAX_PROMPT}")
    return Example(
        id=id,
        prompt=prompt,
        prompt_ids=ids,
        reference=answer_text(number),
    )


@functools.cache
def built_in_split() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Returns 610 training and 200 held-out sums a + b with a < 90 and 1 <= b <= 9."""
    problems = [(a, b) for a in range(90) for b in range(1, 10)]
    random.Random(0).shuffle(problems)
    examples = [
        make_example(f"{vocab.number_words(a)} plus {vocab.number_words(b)}", a + b, id=f"{a}+{b}")
        for a, b in problems
    ]
    return tuple(examples[:NUM_TRAIN]), tuple(examples[NUM_TRAIN:])


def example_number(example: Example) -> int:
    """Returns the right sum of an example as a number."""
    return vocab.NUMBERS[example.reference.removeprefix(vocab.ANSWER_PREFIX).strip()]


def interleave(text: str, codes: Sequence[int]) -> tuple[int, ...]:
    """Interleaves two words with eight speech codes; the last chunk takes the rest of both."""
    words = vocab.encode_words(text)
    speech = vocab.encode_codes(codes)
    chunks = min(-(-len(words) // TEXT_CHUNK), -(-len(speech) // SPEECH_CHUNK))
    ids: list[int] = []
    for chunk in range(chunks):
        last = chunk == chunks - 1
        words_end = len(words) if last else (chunk + 1) * TEXT_CHUNK
        speech_end = len(speech) if last else (chunk + 1) * SPEECH_CHUNK
        ids += words[chunk * TEXT_CHUNK : words_end]
        ids += [vocab.BEGIN_AUDIO, *speech[chunk * SPEECH_CHUNK : speech_end], vocab.END_AUDIO]
    return (*ids, vocab.EOS)


def spoken_answer(number: int, assets: SpeechAssets, rng: random.Random) -> tuple[int, ...]:
    """Returns an answer whose speech says its text, at a random one of the recorded rates."""
    return interleave(answer_text(number), rng.choice(assets.recordings[number]))


def demonstrated_number(example: Example, wrong_share: float, rng: random.Random) -> int:
    """Returns the right sum, or with probability ``wrong_share`` any recorded number."""
    if rng.random() < wrong_share:
        return rng.randrange(NUM_ANSWERS)
    return example_number(example)
