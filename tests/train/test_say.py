"""``wavalign-fast say``: where the sound goes, and which checkpoints are refused."""

import ast
import io
import json
import os
import re
import stat
import threading
import wave
from pathlib import Path

import pytest
import torch

from wavalign_fast import cli, models
from wavalign_fast.cli import main
from wavalign_fast.errors import UserError
from wavalign_fast.models import load_checkpoint
from wavalign_fast.train.run_directory import fingerprint, start_run

pytestmark = pytest.mark.usefixtures("toy_recipe", "in_tmp_path")


@pytest.fixture
def run(in_tmp_path, toy_task, make_config):
    """What ``say`` needs of a run: its config and a model."""
    folder = in_tmp_path / "runs" / "one"
    task = toy_task()
    start_run(folder, make_config(), data=fingerprint(task.train_examples))
    task.load_model().save_pretrained(folder / "checkpoint")
    return folder


def say(out, *argv):
    return ["say", "hello", "--run", "runs/one", "--out", str(out), *argv]


def test_a_pipe_gets_a_whole_wav_and_stays_a_pipe(run, capsys):
    os.mkfifo("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_bytes()), daemon=True)
    reader.start()
    assert main(say("pipe")) == 0
    reader.join(timeout=10)
    with wave.open(io.BytesIO(got[0])) as file:
        assert file.getnframes() == 80
    assert stat.S_ISFIFO(os.lstat("pipe").st_mode)


def test_a_link_stays_a_link(run, in_tmp_path):
    (in_tmp_path / "target.wav").write_text("old")
    (in_tmp_path / "link.wav").symlink_to("target.wav")
    assert main(say("link.wav")) == 0
    assert os.readlink("link.wav") == "target.wav"
    assert (in_tmp_path / "target.wav").read_bytes().startswith(b"RIFF")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "say: .: Is a directory"),
        ("runs", "say: runs: Is a directory"),
        ("runs/one/config.yaml/a.wav", "say: runs/one/config.yaml/a.wav: Not a directory"),
        ("/sys/a.wav", "say: /sys/a.wav: "),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_that_takes_no_sound_is_found_before_the_model_is_read(
    run, error_line, monkeypatch, out, message
):
    monkeypatch.setattr(models, "load_checkpoint", lambda *args: pytest.fail("was read"))
    assert message in error_line(*say(out))


def test_a_device_without_room_is_one_line(run, error_line):
    assert "say: /dev/full: No space left on device" in error_line(*say("/dev/full"))


def test_text_goes_to_stderr_where_the_sound_goes_to_stdout(run, capsys, monkeypatch):
    monkeypatch.setattr("wavalign_fast.cli.is_stdout", lambda path: path.name == "here.wav")
    assert main(say("here.wav")) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-3:] == ["t", "heard: h", "speech: here.wav"]
    assert main(say("there.wav")) == 0
    assert capsys.readouterr().out.splitlines() == ["t", "heard: h", "speech: there.wav"]


def test_a_dash_is_the_standard_output(run, capfd):
    assert main(say("-")) == 0
    out, err = capfd.readouterr()
    assert out.startswith("RIFF") and err.splitlines()[-1] == "speech: /dev/stdout"
    assert not Path("-").exists()


def test_an_empty_prompt_is_refused(run, error_line):
    assert "say: the prompt is empty" in error_line("say", " ", "--run", "runs/one")


def with_code(run, **changes):
    """Adds code to the checkpoint that leaves a trace when it runs."""
    path = run / "checkpoint" / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {
        "AutoConfig": "harm.HarmConfig",
        "AutoModelForCausalLM": "harm.HarmModel",
    }
    path.write_text(json.dumps({**config, **changes}))
    (run / "checkpoint" / "harm.py").write_text("open('harm', 'w').close()\n")


def test_code_in_a_checkpoint_is_said_and_not_run(run, in_tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked whether to run the code"))
    with_code(run)
    assert main(say("a.wav")) == 0
    assert "names code of its own (auto_map): it is not run" in caplog.text
    assert not (in_tmp_path / "harm").exists() and (in_tmp_path / "a.wav").exists()


def test_a_checkpoint_that_needs_its_own_code_is_refused(run, in_tmp_path, error_line, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked whether to run the code"))
    with_code(run, model_type="harm")
    line = error_line(*say("a.wav"))
    assert "checkpoint runs/one/checkpoint cannot be read: only code of its own can" in line
    assert "trust_remote_code" not in line and "never run" in line
    assert not (in_tmp_path / "harm").exists() and not (in_tmp_path / "a.wav").exists()


def test_weights_in_a_pickle_are_not_read(run, in_tmp_path, payload):
    weights = load_checkpoint(run / "checkpoint").state_dict()
    (run / "checkpoint" / "model.safetensors").unlink()
    for harmless_or_not in (weights, {"weight": payload}):
        torch.save(harmless_or_not, run / "checkpoint" / "pytorch_model.bin")
        with pytest.raises(UserError, match="cannot be read"):
            load_checkpoint(run / "checkpoint")
    assert not (in_tmp_path / "harm").exists()


def test_every_way_into_transformers_refuses_code():
    # A call without this argument would ask the user, or run the code of a stranger.
    calls = [
        ast.unparse(node)
        for path in Path(cli.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.match(r"Auto\w+\.from_", ast.unparse(node.func))
    ]
    assert calls
    for call in calls:
        assert "trust_remote_code=False" in call, call
