"""The metrics of the evaluation, those of the README's table, on answers made by hand."""

import random
from types import SimpleNamespace

import pytest
import torch

from wavalign_fast.recipes.spoken_sums import evaluate as evaluation
from wavalign_fast.recipes.spoken_sums import vocabulary as vocab
from wavalign_fast.recipes.spoken_sums.assets import load_speech_assets
from wavalign_fast.recipes.spoken_sums.data import (
    answer_text,
    built_in_split,
    example_number,
    interleave,
    spoken_answer,
)
from wavalign_fast.recipes.spoken_sums.task import SpokenSums

ASSETS = load_speech_assets()
EXAMPLES = built_in_split()[1][:4]
RIGHT = [example.reference for example in EXAMPLES]
WRONG = answer_text(98)
CODES = list(range(24))


def answer(text, codes=CODES, *, ended=True):
    ids = list(interleave(text, codes)) if codes else [*vocab.encode_words(text), vocab.EOS]
    return ids if ended else ids[:-1]


SAMPLED = [
    answer(RIGHT[0]),  # right, and said
    answer(RIGHT[1]),  # right, and something else said
    answer(WRONG),  # wrong, and said as written
    answer(WRONG, ended=False),  # wrong, and the right sum said
    answer("", codes=[]),  # nothing at all
    answer(RIGHT[1], CODES[:8]),  # right, and nothing said
    answer(RIGHT[2]),  # right, and the judge fails
    [vocab.BEGIN_AUDIO, *vocab.encode_codes(CODES[:16])],  # nothing written, and nothing heard
]
HEARD = [RIGHT[0], WRONG, WRONG, RIGHT[3], "", "", None, ""]
GREEDY = [answer(RIGHT[0]), answer(RIGHT[1]), answer(RIGHT[2]), answer(WRONG)]


class Judge:
    """A judge that returns prepared results."""

    def __init__(self, heard):
        self.heard = heard

    def hear(self, answers):
        assert [list(codes) for codes in answers] == [vocab.split_answer(ids)[1] for ids in SAMPLED]
        return self.heard


@pytest.fixture
def model():
    return SpokenSums().load_model()


@pytest.fixture
def evaluated(model, monkeypatch):
    def run(heard):
        def sample(model, prompt_ids, *, temperature, **options):
            wanted = [example.prompt_ids for example in EXAMPLES]
            if temperature == 0.0:  # greedy: each prompt once
                assert prompt_ids == wanted
                return GREEDY
            assert temperature == 1.0 and prompt_ids == wanted * 2
            return SAMPLED

        monkeypatch.setattr(evaluation, "sample_completions", sample)
        return evaluation.evaluate(
            model, EXAMPLES, assets=ASSETS, judge=Judge(heard), items=8, seed=3
        )

    return run


def test_every_figure_of_answers_made_by_hand(evaluated):
    seen = evaluated(HEARD)
    figures = {name: seen.metrics[name] for name in seen.metrics if not name.endswith("_ce")}
    assert figures == {
        "text_accuracy": 4 / 8,
        "text_accuracy_greedy": 3 / 4,
        "speech_matches_text": 2 / 7,
        "speech_says_sum": 2 / 7,
        "judge_failed": 1.0,
        "ended": 6 / 8,
        "speech_length": (24 * 5 + 8 + 16 + 0) / 8,
        "items": 8.0,
    }
    assert [sample.heard for sample in seen.samples] == HEARD
    assert [sample.reference for sample in seen.samples] == RIGHT * 2


def test_agreement_is_with_the_text_and_correctness_with_the_sum(evaluated):
    figures = evaluated([RIGHT[0], RIGHT[1], RIGHT[2], WRONG, "", "", "", ""]).metrics
    assert (figures["speech_matches_text"], figures["speech_says_sum"]) == (3 / 8, 3 / 8)
    figures = evaluated([RIGHT[0], RIGHT[1], WRONG, WRONG, "", "", "", ""]).metrics
    assert (figures["speech_matches_text"], figures["speech_says_sum"]) == (4 / 8, 2 / 8)
    figures = evaluated([RIGHT[0], WRONG, RIGHT[2], RIGHT[3], RIGHT[0], "", "", ""]).metrics
    assert (figures["speech_matches_text"], figures["speech_says_sum"]) == (1 / 8, 4 / 8)
    assert "judge_failed" not in figures


def test_a_judge_that_fails_on_everything_gives_no_share(evaluated):
    figures = evaluated([None] * 8).metrics
    assert figures["judge_failed"] == 8
    assert not {"speech_matches_text", "speech_says_sum"} & set(figures)


def test_cross_entropies_are_of_text_and_of_speech(model):
    text, speech = evaluation.teacher_forced(model, EXAMPLES, ASSETS, seed=5)
    rng, losses = random.Random(5), {True: [], False: []}
    for example in EXAMPLES:
        ids = spoken_answer(example_number(example), ASSETS, rng)
        row = torch.tensor([[*example.prompt_ids, *ids]])
        with torch.no_grad():
            logp = model(row).logits[0].double().log_softmax(-1)
        for place, token in enumerate(ids, start=len(example.prompt_ids) - 1):
            is_speech = token >= vocab.SPEECH_START or token in (
                vocab.BEGIN_AUDIO,
                vocab.END_AUDIO,
            )
            losses[is_speech].append(-logp[place, token].item())
    assert text == pytest.approx(sum(losses[False]) / len(losses[False]), rel=1e-4)
    assert speech == pytest.approx(sum(losses[True]) / len(losses[True]), rel=1e-4)
    assert text != pytest.approx(speech, rel=0.1)


def test_an_answer_follows_its_seed(model):
    task = SpokenSums()
    task.judge = SimpleNamespace(hear=lambda answers: [""] * len(answers))

    def texts(seed):
        (sample,) = task.answer(model, "eighty seven plus six", seed=seed).samples
        return sample.text, sample.waveform.tobytes()

    first = texts(0)
    assert texts(0) == first
    assert len({first, texts(1), texts(2)}) > 1


def test_a_failed_judge_is_a_missing_reward_where_speech_counts():
    task = SpokenSums(asr_reward=0.25)
    example = task.train_examples[0]
    done = [
        type("Done", (), {"ids": answer(example.reference), "example": example})() for _ in range(3)
    ]
    task.judge = type("Judge", (), {"hear": lambda self, answers: [example.reference, None, ""]})()
    assert task.rewards(done) == [5.0, None, 4.0]
    task.asr_reward = 0.0
    assert task.rewards(done) == [5.0, 5.0, 5.0]


@pytest.mark.parametrize("failure", ["absent", "broken"])
def test_an_answer_needs_no_judge(model, monkeypatch, caplog, failure):
    from wavalign_fast.errors import UserError

    def refuse(answers):
        raise UserError("pocketsphinx cannot be imported: OSError: x.so")

    task = SpokenSums()
    task.judge = type("Judge", (), {"hear": staticmethod(refuse)})()
    installed = failure == "broken"
    monkeypatch.setattr(
        "wavalign_fast.recipes.spoken_sums.task.recogniser_installed", lambda: installed
    )
    (sample,) = task.answer(model, "one plus two", seed=0).samples
    assert sample.heard is None and sample.text
    assert ["x.so" in record.getMessage() for record in caplog.records] == [True] * installed
