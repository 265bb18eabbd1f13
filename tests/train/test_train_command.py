"""``wavalign-fast train`` and ``say`` from end to end on the toy recipe."""

import json
import wave

import pytest
import yaml
from transformers import AutoModelForCausalLM

from wavalign_fast.cli import main
from wavalign_fast.train.owned_files import MARKER_FILE

pytestmark = pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")


def files(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


def test_a_run_directory_is_complete(in_tmp_path, no_report, train_toy):
    assert train_toy("--name", "one", "train.seed=5", "--output", "out") == 0
    run = in_tmp_path / "out" / "one"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["recipe"], config["arm"], config["train"]["seed"]) == ("toy", "both", 5)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert set(evaluation) == {"arm", "seed", "steps", "seconds", "base", "final"}
    assert (evaluation["arm"], evaluation["seed"], evaluation["steps"]) == ("both", 5, 4)
    assert evaluation["base"]["norm"] != evaluation["final"]["norm"]
    samples = json.loads((run / "samples.json").read_text())
    assert len(samples) == 2
    assert samples[1] == {
        "prompt": "p",
        "reference": "r",
        "text": "t",
        "heard": "h",
        "wav": "wav/001.wav",
        "reward": None,
    }
    with wave.open(str(run / samples[1]["wav"])) as file:
        assert file.getframerate() == 8000 and file.getnframes() == 80
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    AutoModelForCausalLM.from_pretrained(run / "checkpoint")
    assert [str(root) for root in no_report] == ["out/one"]
    assert not [name for name in files(run) if "tmp" in name]


def test_several_arms_share_one_base_evaluation_and_one_report(
    in_tmp_path, no_report, toy_task, train_toy
):
    evaluations = []
    evaluate = toy_task.evaluate
    toy_task.evaluate = lambda self, *a, **k: evaluations.append(1) or evaluate(self, *a, **k)
    try:
        assert train_toy("--arms", "sft,both") == 0
    finally:
        toy_task.evaluate = evaluate
    assert len(evaluations) == 3
    root = in_tmp_path / "runs" / "toy"
    assert {path.name for path in root.iterdir()} == {"sft", "both", MARKER_FILE}
    assert {"config.yaml", "metrics.jsonl", "evaluation.json"} <= files(root / "sft")
    assert [str(path) for path in no_report] == ["runs/toy"]


def test_an_arm_of_several_is_the_same_as_alone(in_tmp_path, train_toy):
    assert train_toy("--all-arms", "--name", "all") == 0
    assert train_toy("--arm", "rl", "--name", "alone") == 0
    runs = in_tmp_path / "runs"
    weights = [runs / run / "checkpoint" / "model.safetensors" for run in ("all/rl", "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_is_not_written_over_without_consent(in_tmp_path, capsys, train_toy, refused):
    assert train_toy("--name", "one") == 0
    before = (in_tmp_path / "runs/one/config.yaml").read_text()
    capsys.readouterr()
    line = refused("--name", "one", "train.seed=9")
    assert "runs/one exists; give --resume, --overwrite or another --name" in line
    assert (in_tmp_path / "runs/one/config.yaml").read_text() == before
    assert train_toy("--name", "one", "--overwrite", "train.seed=9") == 0
    assert "seed: 9" in (in_tmp_path / "runs/one/config.yaml").read_text()


def test_overwrite_removes_nothing_but_runs(in_tmp_path, refused):
    (in_tmp_path / "runs" / "mine").mkdir(parents=True)
    (in_tmp_path / "runs" / "mine" / "thesis.tex").touch()
    line = refused("--name", "mine", "--overwrite")
    assert "runs/mine is not a run directory" in line
    assert (in_tmp_path / "runs" / "mine" / "thesis.tex").exists()


def test_ctrl_c_leaves_a_run_that_resumes(in_tmp_path, capsys, stop_at, train_toy):
    stop_at(2)
    assert train_toy("--arms", "both,sft") == 130
    err = capsys.readouterr().err
    assert "stopped by SIGINT after step 2; checkpoint saved in runs/toy/both/checkpoint" in err


def test_resume_goes_on_and_leaves_finished_arms(in_tmp_path, toy_recipe, capsys, train_toy):
    assert train_toy("--arms", "both,sft", "train.steps=2") == 0
    finished = in_tmp_path / "runs/toy/sft/evaluation.json"
    assert train_toy("--arms", "both", "--name", "toy/both") == 2  # a name is no path
    stamp = finished.stat().st_mtime_ns
    assert train_toy("--arms", "both,sft", "train.steps=2", "--resume") == 0
    assert finished.stat().st_mtime_ns == stamp
    assert "sft: finished before" in capsys.readouterr().out
    assert train_toy("--arms", "both,sft", "train.steps=3", "--resume") == 0
    assert json.loads(finished.read_text())["steps"] == 3


def test_resume_wants_the_same_config(capsys, train_toy, refused):
    assert train_toy("--name", "one") == 0
    capsys.readouterr()
    line = refused("--name", "one", "--resume", "optimizer.lr=1")
    assert "was started with another optimizer.lr" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--resume"], "nothing to resume in runs/toy-both"),
        (["--arm", "bth"], "wanted one of both, rl, sft; did you mean both?"),
        (["train.stepz=3"], "unknown key train.stepz; did you mean train.steps?"),
        (["train.steps=abc"], "train.steps: 'abc' given, wanted a whole number"),
        (["task.hiden=3"], "unknown key task.hiden; did you mean task.hidden?"),
        (["task.hidden=big"], "task.hidden: 'big' given, wanted a whole number"),
        (["--name", "../up"], "name: '../up' given"),
        (["loss.backend=cuda"], "cuda"),
    ],
)
def test_bad_input_leaves_nothing_behind(in_tmp_path, argv, message, refused):
    assert message in refused(*argv)
    assert list(in_tmp_path.iterdir()) == []


def test_an_unknown_recipe(error_line):
    assert "wanted one of toy" in error_line("train", "--recipe", "tyo")


def test_options_and_overrides_may_mix(capsys):
    flags = ("--recipe", "toy", "rollout.prompts=2", "--seed", "4", "--print-config")
    assert main(["train", "train.steps=7", *flags, "anchor.rows=3"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["train"]["steps"], config["train"]["seed"]) == (7, 4)
    assert (config["rollout"]["prompts"], config["anchor"]["rows"]) == (2, 3)


def test_say_prints_the_answer_and_writes_a_wav(in_tmp_path, capsys, train_toy, error_line):
    assert train_toy("--name", "one", "train.steps=1", "train.eval_items=0") == 0
    capsys.readouterr()
    assert main(["say", "hello", "--run", "runs/one", "--out", "hi.wav"]) == 0
    assert capsys.readouterr().out.splitlines() == ["t", "heard: h", "speech: hi.wav"]
    with wave.open("hi.wav") as file:
        assert file.getframerate() == 8000
    line = error_line("say", "bye", "--run", "runs/one", "--out", "bye.wav")
    assert "prompt is 'bye', wanted 'hello'" in line
    assert not (in_tmp_path / "bye.wav").exists()


def test_say_refuses_a_run_without_a_usable_checkpoint(in_tmp_path, capsys, train_toy, error_line):
    assert train_toy("--name", "one", "train.steps=1", "train.eval_items=0") == 0
    capsys.readouterr()
    weights = in_tmp_path / "runs/one/checkpoint/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "cannot be read" in error_line("say", "hello", "--run", "runs/one")
    (in_tmp_path / "runs/one/checkpoint/config.json").unlink()
    assert "no checkpoint in" in error_line("say", "hello", "--run", "runs/one")
