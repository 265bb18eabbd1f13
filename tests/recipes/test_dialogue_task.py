"""The task of the user's own model: its ids, its rewards, its evaluation, and its checks."""

import dataclasses
import json
import shutil

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.config.schema import TrainConfig
from wavalign_fast.data.records import Completion
from wavalign_fast.errors import UserError
from wavalign_fast.models import load_checkpoint
from wavalign_fast.recipes import load_recipe
from wavalign_fast.recipes.answers import sample_answers
from wavalign_fast.recipes.dialogue.options import Options
from wavalign_fast.recipes.dialogue.tokens import load_tokens
from wavalign_fast.train.evaluation import evaluate, sampled_on_all
from wavalign_fast.train.ranks import Ranks

END = 258
SPEECH = (261, 280)  # 16 codes and three rows that fill up the table

REWARD = '''
import json


def length(answers):
    return [len(answer["text"]) / 10 for answer in answers]


def keep(answers, file):
    with open(file, "w") as out:
        json.dump(answers, out)
    return [1.0] * len(answers)


def moody(answers, file):
    """Does what the file says: gives that reward, or fails."""
    return [json.load(open(file))] * len(answers)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch, records):
    (tmp_path / "mine.py").write_text(REWARD)
    for name in ("train.jsonl", "held_out.jsonl"):
        lines = [json.dumps(record) + "\n" for record in records]
        (tmp_path / name).write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def task(folder, model_directory):
    """Makes tasks, and ends the processes of their rewards."""
    made = []
    _, _, factory = load_recipe("dialogue")
    run = {
        "model_path": str(model_directory), "prompts": 2, "group_size": 2, "max_new_tokens": 8,
        "needs_rewards": True, "needs_anchor": True, "eval_items": 4,
        "timeout_s": 100,
    }  # fmt: skip
    own = {
        "data": "train.jsonl", "eval_data": "held_out.jsonl", "reward": "mine.py:length",
        "reward_range": [0, 5], "reward_timeout_s": 60,
    }  # fmt: skip

    def make(**changes):
        made.append(factory(**{**run, **own, **changes}))
        return made[-1]

    yield make
    for one in made:
        if one._rewards.function is not None:
            one._rewards.function.close()


@pytest.fixture
def model(model_directory):
    return load_checkpoint(model_directory).eval()


def completion(task, text, record=0):
    ids = tuple(task.tokens.encode(text))
    return Completion(example=task.train_examples[record], ids=ids, ended=ids[-1] == END)


def test_the_ids_come_from_the_model_directory(task):
    made = task()
    assert dataclasses.asdict(made.layout) | {"_tables": {}} == {
        "vocab_size": 280, "speech": (SPEECH,), "boundary": (259, 260), "boundary_as": "speech",
        "eos": (END,), "eos_as": "speech", "_tables": {},
    }  # fmt: skip
    assert made.eos_id == {END} and made.pad_id == 256
    ids = made.tokens.encode("ho<|begin_of_audio|><|audio_2|><|end_of_audio|>hi<|im_end|>")
    assert made.tokens.text(ids) == "hohi" and made.tokens.speech(ids) == [263]
    assert made.tokens.text([279]) == ""


def test_the_ids_may_be_given(task):
    made = task(
        speech=[[262, 270]], boundary=["<|end_of_audio|>", 3], boundary_as="text",
        eos=["<|endoftext|>", 7], eos_as="text",
    )  # fmt: skip
    layout = made.layout
    assert (layout.speech, layout.boundary, layout.eos) == (((262, 270),), (260, 3), (256, 7))
    assert (layout.boundary_as, layout.eos_as) == ("text", "text")
    # The tokenizer's own end is none of them, so the first one ends the answers of the data.
    assert made.tokens.end_id == 256
    assert task(speech=[]).layout.boundary == () and task(speech=[]).layout.speech == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"speech": "<audio_0>"},
            "task.speech: the tokenizer of the model has no token '<audio_0>",
        ),
        ({"speech": "<audio_0>"}, "; tokens of that form: <|audio_0|>"),
        ({"speech": "<|audio_1|>"}, "task.speech: speech tokens must be contiguous"),
        ({"speech": [[270, 260]]}, "task.speech: speech range (270, 260): want 0 <= first"),
        ({"speech": [[270, 999]]}, "task.speech: speech range (270, 999)"),
        ({"speech": [[270]]}, "task.speech: speech: got [[270]], want ranges"),
        ({"boundary": ["<|boa|>"]}, "task.boundary: the tokenizer of the model has no token"),
        ({"boundary": [280]}, "task.boundary: boundary id 280 is outside [0, 280)"),
        ({"eos": ["<|im_ent|>"]}, "no token '<|im_ent|>'; did you mean <|im_end|>?"),
        ({"eos": [280]}, "task.eos: eos id 280 is outside [0, 280)"),
        ({"eos": []}, "names no end-of-sequence token, wanted the tokens or ids that end"),
        ({"model_path": None}, "model.path: nothing given, wanted the directory of a model"),
        ({"model_path": "nowhere"}, "model.path: no model in nowhere: config.json is missing"),
        ({"reward": None}, "task.reward: nothing given, wanted FILE.py:FUNCTION"),
        ({"reward": "mine.py"}, "task.reward: 'mine.py' given, wanted FILE.py:FUNCTION"),
        ({"reward_range": [1, 1]}, "task.reward_range: [1, 1] given, wanted [lowest, highest]"),
        ({"eval_data": None}, "task.eval_data: nothing given, wanted held-out records, or train."),
    ],
)
def test_a_wrong_setting_is_refused_before_data_and_model_are_read(task, options, message):
    with pytest.raises(UserError) as error:
        task(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_needed_may_be_missing(task):
    made = task(reward=None, needs_rewards=False, eval_data=None, eval_items=0)
    assert len(made.train_examples) == 12


def test_records_with_a_rejected_answer_are_preferences(task, folder):
    path = folder / "train.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "hi", "answer": "ho", "rejected": "hu", "id": "p"}))
    made = task(reward=None, needs_rewards=False)
    (pair,) = made.preferences
    example = made.train_examples[-1]
    assert pair.example_id == example.id == "p" and pair.prompt_ids == example.prompt_ids
    assert made.tokens.text(pair.chosen_ids) == "ho"
    assert made.tokens.text(pair.rejected_ids) == "hu" and pair.rejected_ids[-1] == END


def test_other_ranks_wait_longer_than_a_call_of_the_function_may_take(task):
    def made(reward_timeout_s, reward="mine.py:length"):
        try:
            task(reward_timeout_s=reward_timeout_s, reward=reward, needs_rewards=False)
        except UserError as error:
            return str(error)
        return ""

    assert made(100) == ""  # no other rank waits
    message = (
        "task.reward_timeout_s: 100 given, wanted less than 100, the seconds that other ranks wait "
        "(parallel.timeout_s)"
    )
    cases = lambda: [made(99), made(100), made(100, None)]  # noqa: E731
    assert run_ranks(2, cases) == [["", message, ""]] * 2


def test_a_directory_without_a_tokenizer_takes_ids(model_directory, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model_directory, bare)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink()
    with pytest.raises(UserError, match=r"task\.speech: the tokenizer of the model has no token"):
        load_tokens(bare, Options(data=""))
    tokens = load_tokens(bare, Options(data="", speech=[[262, 270]]))
    assert tokens.layout.eos == (END,) and tokens.text([1, 2]) == "" and tokens.end_id == END
    with pytest.raises(ValueError, match="no tokenizer; wanted ids instead of text"):
        tokens.encode("hi")


def test_code_of_a_model_directory_is_not_run(model_directory, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(model_directory, copy)
    path = copy / "tokenizer_config.json"
    auto = {"auto_map": {"AutoTokenizer": ["harm.Harm", None]}, "tokenizer_class": "Harm"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **auto}))
    (copy / "harm.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked whether to run the code"))
    try:
        assert load_tokens(copy, Options(data="")).layout.speech == (SPEECH,)
    except UserError as error:  # where the tokenizer cannot be read without its code
        assert "is never run" in str(error)
    assert not (tmp_path / "harm").exists()


def test_demonstrations_are_the_answers_of_the_data(task, folder, caplog, records):
    made = task()
    shown = made.demonstrations(made.train_examples[:3], None)
    assert [made.tokens.text(one.answer_ids) for one in shown] == [r["colour"] for r in records[:3]]
    assert all(one.answer_ids[-1] == END for one in shown)
    assert [one.prompt_ids for one in shown] == [e.prompt_ids for e in made.train_examples[:3]]
    assert not caplog.records
    lines = (folder / "train.jsonl").read_text() + '{"prompt": "hi"}\n'
    (folder / "train.jsonl").write_text(lines)
    made = task()
    assert len(made.demonstrations(made.train_examples, None)) == 12
    assert "1 of 13 records have no answer; the anchor leaves them out" in caplog.text
    (folder / "train.jsonl").write_text('{"prompt": "hi"}\n')
    with pytest.raises(UserError, match=r"no record of train\.jsonl has an answer for the anchor"):
        task().train_examples  # noqa: B018
    assert task(needs_anchor=False).train_examples[0].answer_ids == ()


def test_the_function_gets_what_it_may_need(task, folder, records):
    made = task(reward="mine.py:keep", reward_arguments={"file": "seen"})
    text = "ho<|begin_of_audio|><|audio_2|><|end_of_audio|>"
    done = [completion(made, f"{text}<|im_end|>", 1), completion(made, text, 2)]
    assert made.rewards(done) == [1 + 4 / 5] * 2
    first, second = json.loads((folder / "seen").read_text())
    assert first == {
        "id": "train.jsonl:2", "prompt": records[1]["prompt"], "text": "ho", "ended": True,
        "prompt_ids": list(made.train_examples[1].prompt_ids), "ids": list(done[0].ids),
        "speech_ids": [263], "reference": records[1]["colour"], "record": records[1],
    }  # fmt: skip
    assert not second["ended"] and second["record"] == records[2]


def moody(task, folder, **options):
    made = task(reward="mine.py:moody", reward_arguments={"file": "mood"}, **options)
    (folder / "mood").write_text("1")
    done = [completion(made, "hi"), completion(made, "ho")]

    def rewards(mood):
        (folder / "mood").write_text(mood)
        return made.rewards(done)

    return rewards


def test_rewards_are_mapped_to_1_to_5(task, folder):
    rewards = moody(task, folder, reward_range=[-1, 1])
    assert rewards("-1") == [1.0] * 2 and rewards("1") == [5.0] * 2 and rewards("0.5") == [4.0] * 2
    assert rewards("null") == [None] * 2
    assert moody(task, folder, reward_range=None)("-70.5") == [-70.5] * 2
    assert task(reward_range=[-1, 1]).reward_scale == "1 to 5, for -1 to 1 of mine.py:length"
    assert task(reward_range=None).reward_scale == "as mine.py:length gives it"


@pytest.mark.parametrize("mood", ["5.001", "-0.1", "Infinity"])
def test_a_reward_outside_its_range_stops_the_run(task, folder, mood):
    rewards = moody(task, folder, on_reward_error="missing")
    with pytest.raises(UserError) as error:
        rewards(mood)
    seen = "inf" if mood == "Infinity" else mood
    wanted = f"task.reward: {seen} given for an answer to 'train.jsonl:1', wanted 0 to 5, task.rew"
    assert wanted in str(error.value)


def test_a_failing_function_stops_the_run(task, folder):
    rewards = moody(task, folder)
    with pytest.raises(
        UserError, match=r"task\.reward: mine\.py:moody: JSONDecodeError: .*mine.py"
    ):
        rewards("{")


def test_or_its_rewards_are_missing_but_not_for_ever(task, folder, caplog):
    rewards = moody(task, folder, on_reward_error="missing")
    for _ in range(2):
        for _ in range(4):
            assert rewards("{") == [None, None]
        assert rewards("2") == [1 + 4 * 2 / 5] * 2
    assert len(caplog.records) == 8 and "2 rewards are missing" in caplog.text
    for _ in range(4):
        rewards("{")
    with pytest.raises(UserError, match="5 calls in a row failed"):
        rewards("{")


def test_a_function_that_cannot_work_is_found_before_training(task, folder):
    made = task(reward="mine.py:lenght")
    with pytest.raises(UserError, match=r"task\.reward: .*no lenght; did you mean length\?"):
        made.train_examples  # noqa: B018
    (folder / "mood").write_text("{")
    made = task(reward="mine.py:moody", reward_arguments={"file": "mood"})
    with pytest.raises(UserError, match="JSONDecodeError"):
        made.train_examples  # noqa: B018


def test_an_evaluation_counts_what_was_answered(task, model):
    made = task(reward_range=None)
    done = made.evaluate(model, items=5, seed=3)
    asked = [made.held_out[item] for item in range(5)]
    settings = {"temperature": 1.0, "max_new_tokens": 8, "seed": 3}
    answers = sample_answers(model, asked, made.tokens, rows=4, **settings)
    texts = [made.tokens.text(one.ids) for one in answers]
    speech = [len(made.tokens.speech(one.ids)) for one in answers]
    marks = [sum(token in (258, 259, 260) for token in one.ids) for one in answers]
    assert [sample.text for sample in done.samples] == texts
    assert done.samples[0].waveform is None and done.samples[0].reward == len(texts[0]) / 10
    assert done.metrics == {
        "reward": pytest.approx(sum(map(len, texts)) / 50),
        "ended": sum(one.ended for one in answers) / 5,
        "length": sum(len(one.ids) for one in answers) / 5,
        "text_length": (sum(len(one.ids) for one in answers) - sum(speech) - sum(marks)) / 5,
        "speech_length": sum(speech) / 5,
        "items": 5.0,
    }
    # An answer does not depend on how many are sampled at once.
    assert sample_answers(model, asked, made.tokens, rows=1, **settings) == answers
    again = sample_answers(model, asked, made.tokens, rows=4, **{**settings, "seed": 4})
    assert again != answers


def evaluated_on_a_rank(made, model, config):
    """The evaluation, and how many of its answers this rank has sampled."""
    shares = []
    sample = made.sample_evaluation
    made.sample_evaluation = lambda *a, **k: shares.append(sample(*a, **k)) or shares[-1]
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    answers = sampled_on_all(config, made, model, ranks)
    found = ranks.on_main(lambda: evaluate(config, made, model, answers))
    return found.metrics, [(one.prompt, one.text) for one in found.samples], len(shares[0])


@pytest.mark.parametrize(("world", "items", "shares"), [(2, 5, [3, 2]), (3, 2, [1, 1, 0])])
def test_ranks_share_the_answers_of_an_evaluation(task, model, world, items, shares):
    made = task(reward=None, needs_rewards=False)
    alone = made.evaluate(model, items=items, seed=3)
    texts = [(one.prompt, one.text) for one in alone.samples]
    config = TrainConfig(eval_items=items, eval_seed=3)
    found = run_ranks(world, evaluated_on_a_rank, made, model, config)
    assert found == [(alone.metrics, texts, share) for share in shares]
    assert len(set(texts)) == items


def test_a_greedy_evaluation_takes_each_record_once(task, model):
    done = task(eval_temperature=0.0, reward=None, needs_rewards=False).evaluate(
        model, items=100, seed=0
    )
    assert done.metrics["items"] == 12 and "reward" not in done.metrics
    assert done.samples[0].reward is None


def test_rewards_that_are_missing_are_left_out_of_the_mean_and_counted(task, model, folder):
    (folder / "mine.py").write_text(
        "def some(answers):\n    return [None, float('nan'), *[2.0] * (len(answers) - 2)]\n"
    )
    made = task(reward="mine.py:some", group_size=4)
    (folder / "train.jsonl").write_text("")
    metrics = made.evaluate(model, items=8, seed=0).metrics
    assert metrics["reward"] == 2.0 and metrics["reward_failed"] == 2


def test_one_prompt_is_answered_without_data_or_reward(task, model, folder):
    made = task()
    for name in ("train.jsonl", "held_out.jsonl", "mine.py"):
        (folder / name).unlink()
    done = made.answer(model, "say red", seed=1)
    assert done.samples[0].prompt == "say red" and done.metrics["length"] <= 8
    assert made._rewards.function._worker._worker is None
    with pytest.raises(ValueError, match="prompt has the special token"):
        made.answer(model, "say<|im_end|>", seed=1)


def test_the_model_is_loaded_in_fp32(task):
    assert task().load_model().dtype == torch.float32
