"""Prompts, and a tiny model, codec, recogniser and judge that count what they are asked."""

import torch

from tests.models.tiny import VOCAB, tiny_model
from wavalign_fast.evaluation.answering import Parts, Sampling
from wavalign_fast.evaluation.judging import Judged
from wavalign_fast.evaluation.prompts import Prompt
from wavalign_fast.evaluation.run import Asked, Plan, run
from wavalign_fast.evaluation.scoring import Rules

FIRST_CODE = 15
RATE = 8000


class Counting:
    """Asks of each part, by prompt."""

    def __init__(self):
        self.model, self.codec, self.recogniser, self.judge = [], [], [], []


class TinySpeaker:
    """Letters are ids; ids from ``FIRST_CODE`` on are codes."""

    ends = frozenset((1,))
    pad_id = 0
    positions = 40
    embeddings = None
    mtp = None
    streams = None

    def __init__(self, counting):
        self.counting = counting

    def ids(self, prompt):
        if "sound" in prompt.question:
            raise ValueError("no ears")
        self.counting.model.append(prompt.id)
        return [2 + ord(letter) % 12 for letter in prompt.question]

    def parts(self, ids):
        text = "".join(chr(ord("a") + token) for token in ids if 1 < token < FIRST_CODE)
        return Parts(text, [token - FIRST_CODE for token in ids if token >= FIRST_CODE])


class TinyCodec:
    sample_rate = RATE

    def __init__(self, counting, *, refuses=None):
        self.counting, self.refuses = counting, refuses

    def decode(self, codes):
        if any(self.refuses in one.tolist() for one in codes):
            raise ValueError(f"code {self.refuses} is out of range")
        self.counting.codec += [len(one) for one in codes]
        return [one.float().repeat_interleave(80) / VOCAB for one in codes]


class TinyJudge:
    """Judges backwards."""

    at_once = 3

    def __init__(self, counting):
        self.counting = counting

    def __call__(self, questions):
        for place in reversed(range(len(questions))):
            self.counting.judge.append(questions[place].prompt.id)
            yield place, Judged(1.0 + len(questions[place].response.text) % 5)


def prompts(number=5):
    tasks = ("open", "style", "qa", "mcq", "open")
    return [
        Prompt(
            id=f"p{place}", task=tasks[place % 5], category=f"c{place % 5}",
            messages=(("user", f"question {place}"),), references=("A",), source={},
            where=f"f:{place + 1}",
        )
        for place in range(number)
    ]  # fmt: skip


def plan(directory, counting, *, asked=None, codec=True, **changes):
    def recognise(wave, rate):
        assert wave.ndim == 1 and rate == RATE
        counting.recogniser.append(len(wave))
        return "a b"

    settings = {"responses": {"--temperature": 0.0}, "scores": {"--judge": "tiny"}}
    return Plan(
        directory=directory,
        prompts=prompts() if asked is None else asked,
        model=Asked(TinySpeaker(counting), lambda: tiny_model(torch.float32).eval(), "w"),
        sampling=Sampling(max_new_tokens=8),
        codec=TinyCodec(counting) if codec else None,
        recogniser=recognise,
        judge=TinyJudge(counting),
        **{"rows": 2, "rules": Rules(), "settings": settings, **changes},
    )


def finish(evaluation):
    """Runs all stages, and returns the steps of progress."""
    return list(run(evaluation))
