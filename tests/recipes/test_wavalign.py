"""The recipe of real models: dialogues become ids of the family, answers become sound."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.rewards.loopback_judge import LoopbackJudge, scores
from wavalign_fast.cli import main
from wavalign_fast.config.layers import resolve_config
from wavalign_fast.config.yaml import parse_yaml
from wavalign_fast.data.records import Completion
from wavalign_fast.errors import UserError
from wavalign_fast.models.families import vita_audio
from wavalign_fast.models.families.checkpoint import load_family
from wavalign_fast.models.families.interface import IGNORE, Audio
from wavalign_fast.models.families.tiny import make_tiny_checkpoint
from wavalign_fast.recipes import load_recipe
from wavalign_fast.recipes.wavalign.speech import MOST_FAILURES
from wavalign_fast.recipes.wavalign.task import WavAlign
from wavalign_fast.speech.wave_files import write_wave

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
VITA = DATA / "families" / "vita_audio"
DIALOGUES = DATA / "dialogues"
FROM_RUN = {
    "prompts": 2, "group_size": 2, "max_new_tokens": 8, "needs_rewards": False,
    "needs_anchor": True, "eval_items": 0, "timeout_s": 600.0, "scale": (1.0, 5.0),
}  # fmt: skip


@pytest.fixture
def make_task(tmp_path):
    def make(model=VITA, data=DIALOGUES / "rl_sft.jsonl", *, run=(), **options) -> WavAlign:
        options = {"codec": {"kind": "toy", "codebook_size": 64}} | options
        options = {"data": str(data), "cache": str(tmp_path / "cache")} | options
        return WavAlign(**FROM_RUN | {"model_path": str(model)} | dict(run) | options)

    return make


def codes_of(task, name):
    return task.speech.codes(DIALOGUES / name)


def test_prompt_and_answer_are_the_familys_row(make_task):
    task = make_task()
    examples = {example.id: example for example in task.train_examples}
    two = examples["two turns"]
    record = two.record
    turns = [
        *record["messages"],
        {"role": "assistant", "content": "Seven hundred thousand.\n<|audio|>"},
    ]
    audios = [
        Audio(codes=codes_of(task, name)) for name in (*record["audios"], "audio/a3_good.wav")
    ]
    row = vita_audio.row(task.tokens.files, turns, audios)

    (shown,) = task.demonstrations([two], random.Random(0))
    assert list(shown.prompt_ids + shown.answer_ids) == row.ids
    learnt = {*shown.history, *range(len(shown.prompt_ids), len(row.ids))}
    assert learnt == {place for place, label in enumerate(row.labels) if label != IGNORE}
    assert 0 < len(shown.history) < len(shown.prompt_ids)


def test_earlier_answers_can_be_left_out_of_the_anchor(make_task):
    assert not any(example.history for example in make_task(learn_history=False).train_examples)


def test_dialogues_that_cannot_be_used_are_left_out_and_named(make_task, tmp_path, caplog):
    shutil.copytree(DIALOGUES / "audio", tmp_path / "audio")
    lines = (DIALOGUES / "rl_sft.jsonl").read_text(encoding="utf-8").splitlines()
    foreign = json.loads(lines[0]) | {"sft_target_text": "Oslo.<|im_end|>"}
    missing = json.loads(lines[0]) | {"audios": ["audio/none.wav"]}
    data = tmp_path / "mixed.jsonl"
    data.write_text("\n".join([lines[0], json.dumps(foreign), json.dumps(missing)]), "utf-8")

    assert len(make_task(data=data).train_examples) == 1
    assert f"2 of 3 records left out: cannot be used ({data}:2, {data}:3)" in caplog.text
    with pytest.raises(UserError, match=r"no dialogue is left.*ids, wanted at most 3"):
        _ = make_task(data=data, max_prompt=3).train_examples


def test_a_damaged_encoder_is_no_fault_of_the_dialogues(make_task, tmp_path):
    source = tmp_path / "plus"
    shutil.copytree(DATA / "families" / "vita_audio_plus", source)
    (source / "am.mvn").unlink()
    codes = load_family(source).files.layout.codebook_size
    task = make_task(model=source, codec={"kind": "toy", "codebook_size": codes})
    with pytest.raises(UserError, match=r"model\.path: .*am\.mvn cannot be read"):
        _ = task.train_examples


def test_options_that_two_streams_cannot_honour_are_refused(make_task, tmp_path):
    make_tiny_checkpoint("kimi_audio", tmp_path / "kimi")
    with pytest.raises(UserError, match=r"ratio: \[1, 4\] given, wanted none: .*two streams"):
        make_task(model=tmp_path / "kimi", ratio=[1, 4])
    with pytest.raises(UserError, match=r"task\.boundary_as: text given, wanted speech"):
        make_task(model=tmp_path / "kimi", boundary_as="text")


def test_why_a_dialogue_cannot_be_used_is_shown_once_for_each_kind(make_task, tmp_path, caplog):
    shutil.copytree(DIALOGUES / "audio", tmp_path / "audio")
    line = (DIALOGUES / "rl_sft.jsonl").read_text(encoding="utf-8").splitlines()[0]
    foreign = json.dumps(json.loads(line) | {"sft_target_text": "Oslo.<|im_end|>"})
    data = tmp_path / "mixed.jsonl"
    data.write_text("\n".join([line, foreign, foreign]), "utf-8")
    _ = make_task(data=data).train_examples
    shown = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert [one for one in shown if "<|im_end|>" in one] == [
        one for one in shown if one.startswith(f"{data}:2: ")
    ]
    assert any("<|im_end|>" in one for one in shown)


def test_pairs_of_the_data_are_the_preferences(make_task):
    task = make_task(data=DIALOGUES / "dpo.jsonl", run={"needs_anchor": False})
    (pair, *_) = task.preferences
    record = json.loads((DIALOGUES / "dpo.jsonl").read_text(encoding="utf-8").splitlines()[0])
    for ids, side in ((pair.chosen_ids, "sft_target"), (pair.rejected_ids, "rejected")):
        answer = task.tokens.split(ids)
        assert task.tokens.words(answer) == record[f"{side}_text"]
        assert answer.codes == codes_of(task, record[f"{side}_audio"])
        assert answer.ended


def test_the_judge_hears_the_decoded_answer(make_task):
    with LoopbackJudge(scores(5), scores(2)) as server:
        judge = {"url": server.url, "model": "ear-1"}
        task = make_task(judge=judge, run={"needs_rewards": True})
        example = task.train_examples[0]
        answer = task.tokens.family.target(task.tokens.files, "Oslo.", [3, 4, 5]).ids
        ids = (answer, [i for i in answer if i not in task.tokens.speech(answer)])
        done = [Completion(example=example, ids=tuple(row), ended=True) for row in ids]
        started = task.start_rewards(done)
        found = started.result()
        asked = server.asked[0].parts
    assert found == [5.0, None]  # the second has no sound, which is a missing reward
    assert "Oslo." in asked[0]["text"] and example.prompt in asked[0]["text"]
    assert started.metrics()["judge/asked"] == 2.0
    (wave,) = task.speech.waves([[3, 4, 5]])
    assert torch.equal(wave, task.speech.codec.decode([torch.tensor([3, 4, 5])])[0])


@pytest.mark.parametrize("text_model", [None, "reader-1"])
def test_an_evaluation_tells_of_a_model_that_does_not_speak(
    make_task, monkeypatch, caplog, text_model
):
    """Of four answers three have no speech; a judge who hears gets the fourth alone."""
    with LoopbackJudge(*[scores(4)] * 4) as server:
        judge = {"url": server.url, "model": "ear-1", "text_model": text_model, "max_missing": 0.1}
        run = {"needs_rewards": True, "eval_items": 4}
        options = {"judge": judge, "eval_data": str(DIALOGUES / "rl_sft.jsonl")}
        task = make_task(run=run, **options)
        said = list(task.tokens.family.target(task.tokens.files, "Oslo.", [3, 4, 5]).ids)
        silent = [i for i in said if i not in task.tokens.speech(said)]

        def sampled(model, examples, **_):
            rows = [silent, said, silent, silent]
            return [
                Completion(example=one, ids=tuple(row), ended=True)
                for one, row in zip(examples, rows, strict=True)
            ]

        monkeypatch.setattr(task, "_sampled", sampled)
        found = task.evaluate(None, items=4, seed=0)
    assert found.metrics["speaks"] == 0.25 and "reward_failed" not in found.metrics
    rewards = [sample.reward for sample in found.samples]
    if text_model is None:
        assert rewards == [1.0, 4.0, 1.0, 1.0] and len(server.asked) == 1
        assert "3 of 4 answers have no speech: they have failed" in caplog.text
    else:
        assert rewards == [4.0] * 4 and "have failed" not in caplog.text


def test_a_codec_that_keeps_failing_stops_the_run(make_task, caplog):
    task = make_task()
    for _ in range(2):  # a call that succeeds begins the count anew
        for _ in range(MOST_FAILURES - 1):
            assert task.speech.waves([[64]]) == [None]
        assert task.speech.waves([[3]])[0] is not None
    assert "toy: code 64" in caplog.text and "1 answers have no sound" in caplog.text
    with pytest.raises(UserError, match=r"toy: code 64.*; 5 calls in a row failed"):
        for _ in range(MOST_FAILURES):
            task.speech.waves([[64]])


def test_mistakes_are_named_before_anything_is_loaded(make_task):
    with pytest.raises(UserError, match="codec: toy has 48 codes, wanted 64, the model's"):
        make_task(codec={"kind": "toy", "codebook_size": 48})
    with pytest.raises(UserError, match="judge"):
        make_task(run={"needs_rewards": True})
    with pytest.raises(UserError, match="is of the family vita_audio, wanted glm4_voice"):
        make_task(family="glm4_voice")
    with pytest.raises(UserError, match=r"eval_data.*wanted held-out records"):
        make_task(run={"eval_items": 3})
    with pytest.raises(UserError, match=r"has to be encoded, and task\.codec names no codec"):
        _ = make_task(codec=None).train_examples


def test_codes_are_of_the_channel_that_vectors_are_of(make_task, tmp_path):
    left, right = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) / 5
    write_wave(tmp_path / "stereo.wav", torch.stack([left, right * right]), 16000)
    toy = {"kind": "toy", "codebook_size": 64}
    pair = {"kind": "pair", "encode": toy, "decode": toy}
    codes = {}
    for channel in ("mean", 0, 1):
        for codec in (toy, pair):
            task = make_task(codec=codec, channel=channel)
            assert task.speech.codec.channel == channel
            codes[channel] = task.speech.codes(tmp_path / "stereo.wav")
    assert codes["mean"] != codes[0] != codes[1]
    assert make_task(codec=toy | {"channel": 0}).speech.codec.channel == 0


@pytest.mark.parametrize(
    ("model", "codes", "ratio", "message"),
    [
        (VITA, 64, [4, 2], r"ratio \(4, 2\): wanted .* speech sizes of at least 3"),
        (VITA, 64, [4], r"ratio \(4,\): wanted pairs"),
    ],
)
def test_a_ratio_that_cannot_be_followed_leaves_no_dialogue_out(
    make_task, model, codes, ratio, message
):
    task = make_task(model, ratio=ratio, codec={"kind": "toy", "codebook_size": codes})
    with pytest.raises(UserError, match=rf"^task\.ratio: .*{message}"):
        _ = task.train_examples


def test_a_ratio_of_no_pairs_is_named_when_the_config_is_read():
    defaults, _, factory = load_recipe("wavalign")
    given = {"task": {"data": "d.jsonl", "ratio": [4, 10, 3]}}
    with pytest.raises(UserError, match=r"task\.ratio: \[4, 10, 3\] given, wanted pairs of a text"):
        resolve_config([defaults, given], task=factory)


def test_a_cache_that_cannot_be_used_is_named(make_task, tmp_path):
    (tmp_path / "taken").write_text("")
    for model, codes in ((VITA, 64), (VITA.parent / "covo_audio", 71)):
        codec = {"kind": "toy", "codebook_size": codes}
        with pytest.raises(UserError, match=r"^task\.cache: .*taken.* cannot be used: .*irectory"):
            _ = make_task(model, cache=str(tmp_path / "taken"), codec=codec).train_examples


def test_a_file_that_two_keys_name_is_read_once(make_task, tmp_path, caplog):
    shutil.copytree(DIALOGUES / "audio", tmp_path / "audio")
    line = (DIALOGUES / "rl_sft.jsonl").read_text(encoding="utf-8").splitlines()[0]
    data = tmp_path / "mixed.jsonl"
    data.write_text(f"{line}\n[]\n", "utf-8")
    task = make_task(data=data, eval_data=[tmp_path / "audio" / ".." / "mixed.jsonl"])
    assert task.held_out is task.train_examples
    assert caplog.text.count("1 of 2 records left out") == 1


def test_init_writes_a_config_for_a_family(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = DIALOGUES / "rl_sft.jsonl"
    words = ["init", "vita_audio", "--model", str(VITA), "--data", str(data)]
    assert main([*words, "--set", "task.judge.model=ear-1"]) == 0
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    assert "family: vita_audio" in text and "model: ear-1" in text
    assert main(["train", "run.yaml", "--print-config"]) == 0
    assert "vita_audio has the codec glm4_voice" in capsys.readouterr().err
    assert main([*words, "--output", "-", "--set", "task.codec.kind=toy"]) == 0
    assert "note:" not in capsys.readouterr().err
    covo = ["init", "covo_audio", "--model", str(DATA / "families" / "covo_audio"), *words[4:]]
    assert main([*covo, "--output", "-"]) == 0
    assert "codec covo_audio, which this package lacks" in capsys.readouterr().err

    assert main(["init", "glm4_voice", *words[2:], "--output", "other.yaml"]) == 2
    assert "is of the family vita_audio, wanted glm4_voice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--output", "taken"], "taken is there already, wanted a new file"),
        (["--output", "file/run.yaml"], "--output: file/run.yaml: Not a directory"),
        (["--model", "file"], "--model: file is no directory"),
    ],
)
def test_init_refuses_places_by_name(tmp_path, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("{}")
    words = ["init", "vita_audio", "--model", str(VITA), "--data", "file"]
    assert main([*words, *change]) == 2
    assert said in capsys.readouterr().err


def test_the_command_that_init_shows_can_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["init", "vita_audio", "--model", str(VITA), "--data", str(DIALOGUES)]
    assert main([*words, "--output", "my run.yaml"]) == 0
    assert "wavalign-fast train 'my run.yaml'" in capsys.readouterr().out


def test_a_plan_takes_a_familys_directory(tmp_path, capsys):
    """The families' own types of model are none that transformers knows."""
    settings = [f"model.path={VITA}", f"task.data={DIALOGUES / 'rl_sft.jsonl'}"]
    assert main(["plan", "--recipe", "wavalign", "--json", *settings]) == 0
    planned = json.loads(capsys.readouterr().out)
    weights = sum(p.numel() for p in load_family(VITA).model.parameters())
    assert planned["parameters"] == weights


def test_the_page_names_every_option_and_its_config_is_one():
    text = (ROOT / "docs" / "spoken_models.md").read_text(encoding="utf-8")
    defaults, arms, factory = load_recipe("wavalign")
    for name in (*factory.__signature__.parameters, *arms):
        assert f"`{name}`" in text, name
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    config = resolve_config([defaults, parse_yaml(shown, "spoken_models.md")], task=factory)
    assert (config.rollout.group_size, config.rollout.temperature) == (4, 0.9)
    assert (config.optimizer.lr, config.loss.gate.lambda_max) == (1e-6, 0.8)
