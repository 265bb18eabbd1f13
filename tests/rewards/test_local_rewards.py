"""Rewards from the text, the length and the sound of an answer, without a judge."""

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.rewards.guards import Ended, Length
from wavalign_fast.rewards.spoken_words import SpokenWords
from wavalign_fast.rewards.text_rewards import ExactText, NumericText, PatternText, numbers


def answer(text="", **keys) -> dict:
    return {"text": text, "prompt": "?", "ended": True, "ids": [], "speech_ids": []} | keys


def one(reward, text="", **keys):
    (found,) = reward([answer(text, **keys)])
    return found


@pytest.mark.parametrize(
    ("text", "reference", "whole", "part"),
    [
        ("Paris.", "paris", 1, 1),
        ("It is the  Eiffel-Tower!", "Eiffel Tower", 0, 1),
        ("London", "Paris", 0, 0),
        ("", "Paris", 0, 0),
        ("1,000", "1000", 1, 1),
        ("Paris", "", None, None),
        ("Paris", "…", None, None),
    ],
)
def test_exact(text, reference, whole, part):
    assert one(ExactText(), text, reference=reference) == whole
    assert one(ExactText(part=True), text, reference=reference) == part


def test_a_reference_may_be_any_key_of_the_record():
    record = {"gold": 12, "flag": True}
    assert one(ExactText(reference="gold"), "12", record=record) == 1.0
    assert one(NumericText(reference="gold"), "twelve is 12.0", record=record) == 1.0
    assert one(ExactText(reference="flag"), "True", record=record) is None
    assert one(ExactText(reference="absent"), "12", record=record) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-1,200.5 or 3e2", [-1200.5, 300.0]),
        ("It costs $5.", [5.0]),
        ("10-5 = 5, x2 and v1.2", [10.0, 5.0, 5.0]),
        (".5 and 1,20 and 1,000,000", [0.5, 1.0, 20.0, 1e6]),
        ("−3 °C, 50%", [-3.0, 50.0]),
        ("none", []),
    ],
)
def test_numbers_in_a_text(text, found):
    assert numbers(text) == found


def test_numeric():
    reference = "… so #### 1,234.50"
    assert one(NumericText(), "First 7, then 1234.5", reference=reference) == 1.0
    assert one(NumericText(which="first"), "First 7, then 1234.5", reference=reference) == 0.0
    assert one(NumericText(which="first"), "1234.5, not 7", reference=reference) == 1.0
    assert one(NumericText(), "1234.6", reference=reference) == 0.0
    assert one(NumericText(tolerance=1e-3), "1234.6", reference=reference) == 1.0
    assert one(NumericText(), "many", reference=reference) == 0.0
    assert one(NumericText(), "7", reference="many") is None


def test_pattern():
    assert one(PatternText("^yes", found=True), "yes sir") == 1.0
    assert one(PatternText("^yes"), "no") == 0.0
    assert one(PatternText(r"\bum\b", found=False), "um, yes") == 0.0
    assert one(PatternText(r"\bum\b", found=False), "yes") == 1.0
    letter = PatternText(r"answer is \(?([A-D])", reference="reference")
    assert one(letter, "The answer is (B)", reference="b") == 1.0
    assert one(letter, "The answer is C", reference="b") == 0.0
    assert one(letter, "B", reference="b") == 0.0
    assert one(letter, "The answer is B") is None
    with pytest.raises(UserError, match=r"pattern: '\(' given, "):
        PatternText("(")
    with pytest.raises(UserError, match="wanted one of them"):
        PatternText("x", reference="reference", found=False)


def test_length():
    soft = Length(unit="words", least=2, most=4, slope=2)
    texts = ["", "a", "a b", "a b c d", "a b c d e", "a b c d e f", "a b c d e f g"]
    assert soft([answer(text.replace("a", "x")) for text in texts]) == [0, 0.5, 1, 1, 0.5, 0, 0]
    assert Length(most=2)([answer("x y"), answer("x y z")]) == [1, 0]
    assert one(Length(unit="characters", most=3), "abcd") == 0.0
    assert one(Length(unit="ids", least=2), ids=[1, 2]) == 1.0
    assert one(Length(unit="speech_ids", least=1)) == 0.0
    wave = torch.zeros(2, 8000)
    assert one(Length(unit="seconds", most=0.5), wave=wave, sample_rate=16000) == 1.0
    assert one(Length(unit="seconds", least=0.1), wave=None) == 0.0
    with pytest.raises(UserError, match="least: 3 given, wanted at most most, 2"):
        Length(least=3, most=2)


def test_ended():
    assert Ended()([answer(ended=True), answer(ended=False)]) == [1.0, 0.0]


def test_speech_is_compared_with_the_answers_own_text(caplog):
    heard = {1: "the cat sat", 2: "cat", 3: "one two three four five six", 4: ""}

    def recogniser(wave, rate):
        assert wave.shape == (4,) and rate == 16000
        if wave[0] == 5:
            raise OSError("no such model")
        return None if wave[0] == 6 else heard[int(wave[0])]

    def spoken(text, number, channels=()):
        wave = torch.full((*channels, 4), float(number))
        return answer(text, wave=wave, sample_rate=16000)

    answers = [
        spoken("The cat sat.", 1), spoken("The cat sat.", 1, (2,)), spoken("A cat sat", 2),
        spoken("one", 3), spoken("one two", 4), answer("one", wave=None),
        spoken("", 4), spoken("one", 5), spoken("one", 6),
    ]  # fmt: skip
    found = SpokenWords(recogniser)(answers)
    assert found == [1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, None, None]
    assert "no such model" in caplog.text and "NoneType returned" in caplog.text


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny model with two labels, and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GPTNeoXConfig,
        GPTNeoXForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    directory = tmp_path_factory.mktemp("classifier")
    names = ["<pad>", "<eos>", "good", "bad", "?", "<user>", "<assistant>"]
    plain = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(directory)
    config = GPTNeoXConfig(
        vocab_size=len(names), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=12, num_labels=2,
        pad_token_id=None, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    GPTNeoXForSequenceClassification(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("chat", [False, True])
def test_a_classifier_gives_the_same_alone_and_in_a_batch(classifier, chat):
    from wavalign_fast.rewards.classifier import ClassifierReward

    texts = ["good", "good bad good good", "bad", "good " * 20, "bad bad"]
    answers = [answer(text, prompt="good ?") for text in texts]
    reward = ClassifierReward(classifier, chat=chat, batch_size=3, label=1, device="cpu")
    found = reward(answers)
    assert found[3] is None  # longer than the model takes
    alone = [reward([each])[0] for each in answers if each is not answers[3]]
    assert [v for v in found if v is not None] == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 4) for value in alone}) > 2
    ids = reward.tokenizer("<user> good ? <assistant> bad" if chat else "good ?bad")["input_ids"]
    if not chat:
        ids = reward.tokenizer("good ?", "bad")["input_ids"]
    logits = reward.model(torch.tensor([ids])).logits[0]
    assert alone[2] == pytest.approx(float(logits[1]), abs=1e-5)
    for output, wanted in (("sigmoid", logits[1].sigmoid()), ("probability", logits.softmax(0)[1])):
        other = ClassifierReward(classifier, chat=chat, label=1, output=output, device="cpu")
        assert other([answers[2]])[0] == pytest.approx(float(wanted), abs=1e-5)
    assert not any(weight.requires_grad for weight in reward.model.parameters())


def test_what_is_no_classifier_is_refused(classifier, tmp_path):
    from wavalign_fast.rewards.classifier import ClassifierReward

    with pytest.raises(UserError, match="no such directory"):
        ClassifierReward(tmp_path / "none")
    with pytest.raises(UserError, match="label: 2 given, wanted 0 to 1"):
        ClassifierReward(classifier, label=2)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=str(tmp_path)):
        ClassifierReward(tmp_path)
