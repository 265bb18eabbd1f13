"""The base model, its build, and the evaluation of spoken sums."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wavalign_fast.recipes.spoken_sums import base_model, build
from wavalign_fast.recipes.spoken_sums import recogniser as recognition
from wavalign_fast.recipes.spoken_sums import vocabulary as vocab
from wavalign_fast.recipes.spoken_sums.assets import ASSETS, load_speech_assets
from wavalign_fast.recipes.spoken_sums.data import built_in_split
from wavalign_fast.recipes.spoken_sums.evaluate import evaluate
from wavalign_fast.recipes.spoken_sums.task import SpokenSums

HELD_OUT = built_in_split()[1]
TINY = (
    base_model.Phase(spoken=False, steps=2, batch_size=4, lr=1e-3),
    base_model.Phase(spoken=True, steps=2, batch_size=4, lr=1e-3),
)


class EchoJudge:
    """Hears the reference of every even item and nothing in the odd ones."""

    def hear(self, answers):
        return [
            HELD_OUT[item % len(HELD_OUT)].reference if item % 2 == 0 else ""
            for item in range(len(answers))
        ]


@pytest.fixture(scope="module")
def base():
    return SpokenSums().load_model()


def files(directory):
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_shipped_files_are_small_and_complete():
    shipped = files(ASSETS)
    assert set(shipped) == {
        "base/config.json",
        "base/model.safetensors",
        "codebook.safetensors",
        "recordings.safetensors",
    }
    assert sum(map(len, shipped.values())) <= 3_000_000


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks codebook.*build-recipe"):
        SpokenSums(assets=tmp_path)


def test_base_is_fp32_and_answers_in_text_and_speech(base):
    assert not base.training
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
    evaluation = evaluate(
        base, HELD_OUT, assets=load_speech_assets(), judge=EchoJudge(), items=40, seed=0
    )
    metrics = evaluation.metrics
    # Wide bounds around the results of the base on 400 items (.41, .82, 23.5 codes); here are 40.
    assert 0.15 <= metrics["text_accuracy"] <= 0.6
    assert metrics["text_accuracy_greedy"] >= 0.5
    assert metrics["ended"] == 1.0
    assert 20 <= metrics["speech_length"] <= 27
    assert metrics["speech_ce"] < 0.15


def test_evaluation_counts_what_the_judge_heard(base):
    evaluation = evaluate(
        base, HELD_OUT, assets=load_speech_assets(), judge=EchoJudge(), items=10, seed=1
    )
    metrics, samples = evaluation.metrics, evaluation.samples
    assert metrics["items"] == 10 and len(samples) == 8
    assert metrics["speech_says_sum"] == 0.5
    right = [sample.text == sample.reference for sample in samples]
    assert [sample.heard == sample.text for sample in samples] == [
        item % 2 == 0 and right[item] for item in range(8)
    ]
    for sample in samples:
        assert sample.waveform.dtype == np.float32 and sample.waveform.ndim == 1


def test_evaluation_is_the_same_for_a_seed_and_leaves_the_random_state(base):
    def run(seed):
        return evaluate(
            base, HELD_OUT, assets=load_speech_assets(), judge=EchoJudge(), items=6, seed=seed
        )

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.metrics == again.metrics
    assert [sample.text for sample in first.samples] == [sample.text for sample in again.samples]
    assert any(
        not np.array_equal(a.waveform, b.waveform)
        for a, b in zip(first.samples, other.samples, strict=True)
    )


def test_more_items_than_sums_go_round(base):
    evaluation = evaluate(
        base, HELD_OUT[:2], assets=load_speech_assets(), judge=EchoJudge(), items=5, seed=0
    )
    assert [sample.prompt for sample in evaluation.samples] == [
        HELD_OUT[item % 2].prompt for item in range(5)
    ]


def test_no_items_raise(base):
    with pytest.raises(ValueError, match="items is 0, wanted at least 1"):
        SpokenSums().evaluate(base, items=0, seed=0)


def test_answer_to_a_prompt(base, monkeypatch):
    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: None)
    task = SpokenSums()
    (sample,) = task.answer(base, "eighty seven plus  six", seed=0).samples
    assert sample.reference == "the answer is ninety three"
    assert sample.text.startswith("the answer is ")
    assert sample.heard is None
    assert len(sample.waveform) > 16_000


@pytest.mark.parametrize("prompt", ["eighty seven", "two times one", "ninety plus nine", ""])
def test_a_prompt_it_cannot_answer_is_named(base, prompt):
    with pytest.raises(ValueError, match="wanted two numbers in words"):
        SpokenSums().answer(base, prompt, seed=0)


def test_losses_split_by_modality():
    model = base_model.new_model(0)
    prompts, answers = [[2, 7, 3], [2, 7, 8, 3]], [[6, 40, 1], [6, 7, 4, 41, 5, 1]]
    ids, labels = base_model.collate(prompts, answers)
    assert ids.tolist()[0] == [2, 7, 3, 6, 40, 1, 0, 0, 0, 0]
    assert labels.tolist()[0] == [-100, -100, 6, 40, 1, -100, -100, -100, -100, -100]
    with torch.no_grad():
        text, speech = base_model.modality_losses(model, ids, labels)
        wanted = {True: [], False: []}
        for prompt, answer in zip(prompts, answers, strict=True):
            logp = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            for place, token in enumerate(answer, start=len(prompt) - 1):
                wanted[token in (4, 5) or token >= 38].append(-logp[place, token].item())
    assert text.item() == pytest.approx(np.mean(wanted[False]), rel=1e-4)
    assert speech.item() == pytest.approx(np.mean(wanted[True]), rel=1e-4)


def test_build_gives_the_same_files_for_a_seed(tmp_path, monkeypatch):
    speech = load_speech_assets()
    monkeypatch.setattr(build, "build_speech_assets", lambda seed: speech)
    lines = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        build.build_recipe(tmp_path / name, seed=seed, phases=TINY, progress=lines.append)
    one, two, three = (files(tmp_path / name) for name in ("one", "two", "three"))
    assert set(one) == set(files(ASSETS))
    assert one == two
    assert one["base/model.safetensors"] != three["base/model.safetensors"]
    assert any("wrote" in line for line in lines)
    model = SpokenSums(assets=tmp_path / "one").load_model()
    assert model.config.vocab_size == vocab.VOCAB_SIZE
