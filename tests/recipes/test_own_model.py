"""docs/own_model.md and its example: they run as they are, on one rank and on two."""

import json
import os
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.cli import main
from wavalign_fast.config.layers import resolve_config
from wavalign_fast.config.yaml import parse_yaml
from wavalign_fast.recipes import load_recipe

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_model"
TEXT = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
SMALL = ["rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=6", "anchor.rows=3"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, own_files):
    """The files of the example, after its script has made the others."""
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    own_files.main()
    return tmp_path


def test_the_page_shows_the_files_of_the_example():
    shown = {block for language in ("yaml", "python") for block in blocks(language)}
    assert (EXAMPLE / "run.yaml").read_text(encoding="utf-8") in shown
    assert any((EXAMPLE / "my_reward.py").read_text(encoding="utf-8") in block for block in shown)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_setting_of_the_page_is_known(block):
    defaults, _, factory = load_recipe("dialogue")
    needed = {"task": {"data": "x.jsonl"}}
    resolve_config([defaults, needed, parse_yaml(block, "own_model.md")], task=factory)


def test_every_option_is_on_the_page():
    _, _, factory = load_recipe("dialogue")
    for option in factory.__signature__.parameters:
        assert re.search(rf"\b{option}\b", TEXT), option


def test_every_record_of_the_page_can_be_read(folder):
    lines = [line for block in blocks("json") for line in block.splitlines()]
    (folder / "train.jsonl").write_text("\n".join(lines))
    command = ["train", "run.yaml", "arm=sft", "task.reward=null", "train.steps=1", *SMALL]
    assert len(lines) >= 4 and main([*command, "train.eval_items=0"]) == 0


def test_every_reward_function_of_the_page_gives_rewards(folder):
    for number, block in enumerate(blocks("python")):
        (folder / f"shown{number}.py").write_text(block)
        settings = ["train.steps=1", "train.eval_items=0", f"task.reward=shown{number}.py:score"]
        assert main(["train", "run.yaml", "--name", f"run{number}", *SMALL, *settings]) == 0


def test_the_example_trains_evaluates_and_answers(folder, capsys):
    for command in blocks("bash"):
        for line in command.splitlines():
            words = shlex.split(line, comments=True)
            assert not words or words[0] in {"python", "wavalign-fast", "torchrun"}, line
    assert main(["train", "run.yaml", "train.steps=3", "train.eval_items=5", *SMALL]) == 0
    run = folder / "runs" / "my_run"
    results = json.loads((run / "evaluation.json").read_text())
    assert set(results["base"]) == set(results["final"]) >= {"reward", "ended", "speech_length"}
    assert results["final"]["items"] == 5 and 0 <= results["final"]["reward"] <= 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(1 <= line["reward/mean"] <= 5 and line["loss/anchor"] > 0 for line in lines)
    samples = json.loads((run / "samples.json").read_text())
    assert len(samples) == 5 and all(sample["wav"] is None for sample in samples)
    assert all(sample["prompt"].startswith("say ") for sample in samples)
    page = (run / "report.html").read_text()
    assert all(sample["prompt"] in page for sample in samples) and "Reward" in page
    capsys.readouterr()
    assert main(["say", "say red", "--run", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "speech: none"
    assert not (folder / "answer.wav").exists()


def command_on_a_rank(arguments, port):
    """Runs the command as torchrun starts it, in a process that has imported everything."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()  # the command makes a group of its own
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    return main(arguments)


def test_two_ranks_train_and_export_a_model(folder):
    """What a kill leaves is the subject of test_wavalign_run.py and tests/train/test_killed.py."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["train", "run.yaml", *SMALL, "train.steps=2", "train.eval_items=2"]
    assert run_ranks(2, command_on_a_rank, command, port) == [0, 0]
    run = folder / "runs" / "my_run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "my_model")
    assert type(model) is type(base) and model.config.hidden_size == 56
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    moved = [
        not weight.equal(base.state_dict()[name]) for name, weight in model.state_dict().items()
    ]
    assert all(moved)
    ids = tokenizer("say red", return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > ids["input_ids"].shape[1]
