"""``SpokenSums``: the recipe's task, as the trainer uses it."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.data.jsonl import read_jsonl
from wavalign_fast.data.records import Completion, Demonstration, Evaluation, Example
from wavalign_fast.errors import UserError, shown
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.recipes.spoken_sums import vocabulary as vocab
from wavalign_fast.recipes.spoken_sums.assets import NUM_ANSWERS, load_speech_assets
from wavalign_fast.recipes.spoken_sums.base_model import load_base
from wavalign_fast.recipes.spoken_sums.data import (
    WRONG_SHARE,
    built_in_split,
    demonstrated_number,
    make_example,
    spoken_answer,
)
from wavalign_fast.recipes.spoken_sums.evaluate import evaluate, sample_answers, spoken_sample
from wavalign_fast.recipes.spoken_sums.judge import Judge
from wavalign_fast.recipes.spoken_sums.options import Options
from wavalign_fast.recipes.spoken_sums.recogniser import recogniser_installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

WRONG_SHARES = {"imperfect": WRONG_SHARE, "gold": 0.0}


def read_examples(path: str | Path) -> tuple[Example, ...]:
    """Reads examples from JSONL lines like ``{"prompt": "one plus two", "answer": "three"}``."""
    examples = []
    for where, record in read_jsonl(path, keys=("prompt", "answer")):
        answer = " ".join(record["answer"].split())
        number = vocab.NUMBERS.get(answer)
        if number is None or number >= NUM_ANSWERS:
            raise ValueError(
                f"{where}: answer is {shown(record['answer'])}, wanted a number in words "
                f"from 'zero' to {vocab.number_words(NUM_ANSWERS - 1)!r}"
            )
        try:
            examples.append(make_example(" ".join(record["prompt"].split()), number, id=where))
        except ValueError as error:
            raise ValueError(f"{where}: prompt: {error}") from error
    return tuple(examples)


class SpokenSums:
    """Sums answered in text and speech; the keyword arguments are the fields of ``Options``."""

    pad_id = vocab.PAD
    eos_id = vocab.EOS
    reward_scale = "1 (wrong) to 5 (right)"

    def __init__(self, **options: Any) -> None:
        chosen = Options(**options)
        if chosen.demonstrations not in WRONG_SHARES:
            raise ValueError(
                f"demonstrations is {chosen.demonstrations!r}, "
                f"wanted one of {', '.join(WRONG_SHARES)}"
            )
        if not 0 <= chosen.asr_reward <= 1:
            raise ValueError(f"asr_reward is {chosen.asr_reward}, wanted 0 to 1")
        self.wrong_share = WRONG_SHARES[chosen.demonstrations]
        self.asr_reward = chosen.asr_reward
        self.directory = Path(chosen.assets)
        self.assets = load_speech_assets(self.directory)
        self.judge = Judge(self.assets.centroids, workers=chosen.judge_workers)
        self.layout = ModalityLayout(
            vocab_size=vocab.VOCAB_SIZE,
            speech=((vocab.SPEECH_START, vocab.SPEECH_END),),
            boundary=(vocab.BEGIN_AUDIO, vocab.END_AUDIO),
            boundary_as="speech",
            eos=(vocab.EOS,),
            eos_as=chosen.eos_as,
        )
        built_in, self.held_out = built_in_split()
        self.train_examples = (
            built_in if chosen.train_path is None else read_examples(chosen.train_path)
        )

    def load_model(self) -> "PreTrainedModel":
        """Loads the base model, in fp32 and in eval mode."""
        return load_base(self.directory / "base")

    def demonstrations(
        self, examples: Sequence[Example], rng: random.Random
    ) -> list[Demonstration]:
        """Returns one demonstration per example, whose speech always says its text."""
        return [
            Demonstration(
                prompt_ids=example.prompt_ids,
                answer_ids=spoken_answer(
                    demonstrated_number(example, self.wrong_share, rng), self.assets, rng
                ),
            )
            for example in examples
        ]

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        """Returns rewards from 1 (wrong) to 5 (right); ``asr_reward`` is the share for speech.

        A reward is ``None`` if speech counts and the judge failed.
        """
        answers = [vocab.split_answer(completion.ids) for completion in completions]
        wanted = [completion.example.reference for completion in completions]
        right = [float(text == want) for (text, _), want in zip(answers, wanted, strict=True)]
        if not self.asr_reward:
            return [1 + 4 * share for share in right]
        heard = self.judge.hear([codes for _, codes in answers])
        weight = self.asr_reward
        return [
            None if words is None else 1 + 4 * ((1 - weight) * written + weight * (words == want))
            for written, words, want in zip(right, heard, wanted, strict=True)
        ]

    def evaluate(self, model: "PreTrainedModel", *, items: int, seed: int) -> Evaluation:
        """Evaluates the held-out sums, with the metrics of ``spoken_sums.evaluate.evaluate``."""
        return evaluate(
            model, self.held_out, assets=self.assets, judge=self.judge, items=items, seed=seed
        )

    def answer(self, model: "PreTrainedModel", prompt: str, *, seed: int) -> Evaluation:
        """Samples one answer to a prompt such as ``"eighty seven plus six"``.

        An answer needs no judge: ``heard`` is ``None`` if pocketsphinx is missing or fails.
        """
        words = " ".join(prompt.split())
        left, plus, right = words.partition(" plus ")
        known = plus and left in vocab.NUMBERS and right in vocab.NUMBERS
        total = vocab.NUMBERS[left] + vocab.NUMBERS[right] if known else None
        if total is None or total >= NUM_ANSWERS:
            raise ValueError(
                f"prompt is {shown(prompt)}, wanted two numbers in words with a sum of at most "
                f"{NUM_ANSWERS - 1}, e.g. 'eighty seven plus six'"
            )
        example = make_example(words, total, id=words)
        ids = sample_answers(model, [example], temperature=1.0, seed=seed)[0]
        text, codes = vocab.split_answer(ids)
        heard = None
        if recogniser_installed():
            try:
                heard = self.judge.hear([codes])[0]
            except UserError as error:
                logger.warning("the answer is not judged: %s", error)
        metrics = {
            "text_accuracy": float(text == example.reference),
            "ended": float(ids[-1] == vocab.EOS),
            "speech_length": float(len(codes)),
        }
        return Evaluation(
            metrics=metrics, samples=[spoken_sample(example, text, codes, heard, self.assets)]
        )


TASK = SpokenSums
