"""Words, ids, problems, demonstrations and rewards of the spoken-sums recipe."""

import json
import random
from collections import Counter

import pytest
import torch

from wavalign_fast.data.jsonl import read_jsonl
from wavalign_fast.data.records import Completion
from wavalign_fast.recipes.spoken_sums import vocabulary as vocab
from wavalign_fast.recipes.spoken_sums.assets import NUM_ANSWERS, load_speech_assets
from wavalign_fast.recipes.spoken_sums.data import (
    answer_text,
    built_in_split,
    demonstrated_number,
    example_number,
    interleave,
)
from wavalign_fast.recipes.spoken_sums.task import SpokenSums, read_examples


def test_ids_are_words_then_codes_then_pad_rows():
    assert (vocab.SPEECH_START, vocab.SPEECH_END, vocab.VOCAB_SIZE) == (38, 294, 296)
    assert len(vocab.NUMBERS) == 100 and vocab.NUMBERS["ninety three"] == 93
    assert vocab.encode_prompt("two plus one")[0] == vocab.USER


@pytest.mark.parametrize("text", ["two times one", "<eos>", "Two"])
def test_unknown_words_raise(text):
    with pytest.raises(ValueError, match="unknown word"):
        vocab.encode_words(text)


def test_answers_interleave_two_words_and_eight_codes():
    ids = interleave("the answer is ninety three", range(20))
    kinds = "".join(
        "c" if token >= vocab.SPEECH_START else "t" if token > vocab.END_AUDIO else "<x"[token == 5]
        for token in ids[:-1]
    )
    assert kinds == "tt<" + "c" * 8 + "x" + "tt<" + "c" * 8 + "x" + "t<" + "c" * 4 + "x"
    assert ids[-1] == vocab.EOS
    assert vocab.split_answer(ids) == ("the answer is ninety three", list(range(20)))
    # Too little speech for the third chunk: its word joins the second.
    assert vocab.split_answer(interleave("the answer is ninety three", range(9)))[0].endswith(
        "ninety three"
    )


def test_nothing_after_the_end_counts():
    ids = [*vocab.encode_words("the answer"), vocab.EOS, *vocab.encode_words("is two")]
    assert vocab.split_answer(ids) == ("the answer", [])


def test_split_is_disjoint_and_right():
    train, held_out = built_in_split()
    assert (len(train), len(held_out)) == (610, 200)
    assert len({example.id for example in (*train, *held_out)}) == 810
    for example in (*train, *held_out):
        left, _, right = example.prompt.partition(" plus ")
        assert example_number(example) == vocab.NUMBERS[left] + vocab.NUMBERS[right]


def spoken_numbers():
    """Maps the codes of each recording to the numbers that they can mean."""
    meanings = {}
    for number, by_rate in enumerate(load_speech_assets().recordings):
        for codes in by_rate:
            meanings.setdefault(codes, set()).add(number)
    return meanings


@pytest.mark.parametrize(("kind", "right_share"), [("imperfect", 0.604), ("gold", 1.0)])
def test_demonstrations_say_what_they_write(kind, right_share):
    task = SpokenSums(demonstrations=kind)
    examples = [*task.train_examples] * 3
    meanings, right = spoken_numbers(), 0
    for demo, example in zip(
        task.demonstrations(examples, random.Random(0)), examples, strict=True
    ):
        text, codes = vocab.split_answer(demo.answer_ids)
        assert demo.prompt_ids == example.prompt_ids and demo.answer_ids[-1] == vocab.EOS
        assert vocab.NUMBERS[text.removeprefix("the answer is ")] in meanings[tuple(codes)]
        right += text == example.reference
    assert right / len(examples) == pytest.approx(right_share, abs=0.04 * (right_share < 1))


def test_a_wrong_demonstration_can_be_any_number_that_was_recorded():
    example, rng = SpokenSums().train_examples[0], random.Random(0)
    shown = Counter(demonstrated_number(example, 1.0, rng) for _ in range(99 * 40))
    assert set(shown) == set(range(NUM_ANSWERS))
    assert max(shown.values()) < 3 * min(shown.values())


def test_layout_gives_the_end_of_the_answer_to_the_class_asked_for():
    ids = torch.tensor([vocab.EOS, vocab.BEGIN_AUDIO, vocab.IDS["plus"], vocab.SPEECH_START])
    speech = {
        eos_as: SpokenSums(eos_as=eos_as).layout.classify(ids).tolist()
        for eos_as in ("speech", "text")
    }
    assert speech["speech"][0] == speech["speech"][3] == speech["speech"][1]
    assert speech["text"][0] == speech["text"][2] != speech["text"][3]


class StubJudge:
    """Hears the number that is the first code."""

    def hear(self, answers):
        return [answer_text(codes[0]) if codes else "" for codes in answers]


def completion(example, text, codes):
    ids = interleave(text, codes)
    return Completion(example=example, ids=ids, ended=True)


def test_rewards_of_text_and_of_speech():
    task = SpokenSums()
    example = task.train_examples[0]
    number = example_number(example)
    wrong = (number + 1) % NUM_ANSWERS
    rollouts = [
        completion(example, example.reference, [number] * 8),
        completion(example, example.reference, [wrong] * 8),
        completion(example, answer_text(wrong), [number] * 8),
        completion(example, answer_text(wrong), [wrong] * 8),
    ]
    assert task.rewards(rollouts) == [5.0, 5.0, 1.0, 1.0]
    task.judge = StubJudge()
    task.asr_reward = 0.25
    assert task.rewards(rollouts) == [5.0, 4.0, 2.0, 1.0]


def test_problems_from_jsonl(tmp_path):
    path = tmp_path / "sums.jsonl"
    lines = [{"prompt": "eighty  seven plus six", "answer": "ninety three"}]
    path.write_text("\n" + "\n".join(map(json.dumps, lines)) + "\n")
    (example,) = SpokenSums(train_path=path).train_examples
    assert example.prompt == "eighty seven plus six"
    assert example.reference == "the answer is ninety three"
    assert example.id == f"{path}:2"


GOOD = '{"prompt": "one plus two", "answer": "three"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "one plus two", "answer": ', "malformed JSON .* column"),
        ('["one plus two"]', "not a JSON object"),
        ('{"prompt": "one plus two"}', "key 'answer' is missing; keys seen: 'prompt'"),
        ('{"prompt": "one plus two", "answer": 3}', "answer is 3, wanted text"),
        ('{"prompt": "", "answer": "three"}', "prompt is '', wanted text"),
        ('{"prompt": "one plus two", "answer": "tree"}', "answer is 'tree', wanted a number"),
        ('{"prompt": "one plus two", "answer": "ninety nine"}', "wanted a number .* eight'"),
        ('{"prompt": "one times two", "answer": "two"}', "prompt: unknown word 'times'"),
        ('{"prompt": "%s", "answer": "two"}' % ("one " * 300_000), "is 300002 ids long, wanted at"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_line_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "sums.jsonl"
    raw = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(GOOD.encode() + raw + b"\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 300


def test_a_file_without_records_raises(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: no records"):
        list(read_jsonl(path, keys=("prompt",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"demonstrations": "silver"}, "demonstrations is 'silver', wanted one of imperfect, gold"),
        ({"asr_reward": 1.5}, r"asr_reward is 1\.5, wanted 0 to 1"),
    ],
)
def test_wrong_options_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        SpokenSums(**options)


def test_damaged_assets_are_named(tmp_path):
    for name in ("codebook.safetensors", "recordings.safetensors"):
        (tmp_path / name).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"is damaged: .*header"):
        SpokenSums(assets=tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks codebook"):
        SpokenSums(assets=tmp_path / "none")
