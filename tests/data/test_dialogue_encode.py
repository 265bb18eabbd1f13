"""`wavalign-fast data encode` fills the cache of codes, and the page of docs/data.md runs."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from wavalign_fast.cli import main
from wavalign_fast.data.dialogues.audios import audio_files
from wavalign_fast.data.dialogues.read import read_dialogues
from wavalign_fast.data.dialogues.schemas import ReadOptions
from wavalign_fast.speech.code_cache import CodeCache
from wavalign_fast.speech.codecs import open_codec

FOLDER = Path(__file__).parent / "dialogues"
PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
TRAIN = str(FOLDER / "rl_sft.jsonl")


def encode(tmp_path, capsys, *arguments, status=0):
    """Returns the summary of the command."""
    argv = ["data", "encode", *arguments, "--cache", str(tmp_path / "cache"), "--json"]
    assert main(argv) == status
    return json.loads(capsys.readouterr().out)


def test_files_are_encoded_once_into_the_cache_of_a_run(tmp_path, capsys):
    first = encode(tmp_path, capsys, str(FOLDER / "dpo.jsonl"), "--codec", "toy")
    assert (first["encoded"], first["kept"], first["failed"]) == (7, 0, {})
    # Another file of dialogues, with some of the same audio: the work goes on.
    both = encode(tmp_path, capsys, TRAIN, str(FOLDER / "dpo.jsonl"), "--codec", "toy")
    assert (both["encoded"], both["kept"]) == (0, 7) and both["codes"] == first["codes"]
    codec, cache = open_codec({"kind": "toy"}), CodeCache(tmp_path / "cache" / "codes")
    assert cache.codes(FOLDER / "audio/q1.wav", codec).origin == "cache"


def test_files_that_fail_are_listed_and_the_others_encoded(tmp_path, capsys):
    found = encode(tmp_path, capsys, str(FOLDER / "bad.jsonl"), "--codec", "toy", status=1)
    assert {Path(path).name for path in found["failed"]} == {
        "gone.wav", "zero_bytes.wav", "truncated_header.wav", "not_audio.wav", "no_frames.wav",
        "q1.wav",  # that of ../outside
    }  # fmt: skip
    assert found["encoded"] == 4
    argv = ["data", "encode", str(FOLDER / "bad.jsonl"), "--codec", "toy"]
    assert main([*argv, "--cache", str(tmp_path / "cache")]) == 1
    captured = capsys.readouterr()
    assert "files       10: 0 encoded, 4 were in the cache, 0 of VITA-Audio's own, 6 failed\n" in (
        captured.out
    )
    assert "gone.wav" in captured.out and "encode: 10 of 10\n" in captured.err


def test_answers_only_leaves_out_what_the_user_says(tmp_path, capsys):
    found = read_dialogues([TRAIN], ReadOptions(task_types=None)).dialogues
    names = [path.name for path in audio_files(found, answers_only=True)]
    assert names == ["a1_good.wav", "a3_good.wav", "a2_good.wav"]
    assert len(audio_files(found)) == 6
    turns = [("user", "<|audio|>"), ("assistant", "<|audio|>"), ("user", "<|audio|> <|audio|>")]
    record = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "audios": ["u1.wav", "a1.wav", "u2.wav", "u1.wav"],
        "rejected_audio": "r.wav",
    }
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(record))
    found = read_dialogues([file], ReadOptions(task_types=None)).dialogues
    names = [path.name for path in audio_files(found, answers_only=True)]
    assert names == ["a1.wav", "r.wav"]
    names = [path.name for path in audio_files(found)]
    assert names == ["u1.wav", "a1.wav", "u2.wav", "r.wav"]
    summary = encode(tmp_path, capsys, TRAIN, "--codec", "toy", "--answers-only")
    assert summary["files"] == 3


def test_a_codec_comes_from_a_file_or_from_options(tmp_path, capsys):
    file = tmp_path / "codec.yaml"
    file.write_text(yaml.safe_dump({"kind": "toy", "codebook_size": 128, "channel": "mean"}))
    train = [TRAIN, "--answers-only"]
    encode(tmp_path, capsys, *train, "--codec", str(file))
    options = ["--codec-option", "codebook_size=128", "--codec-option", "channel=mean"]
    assert encode(tmp_path, capsys, *train, "--codec", "toy", *options)["kept"] == 3
    # Another codebook gives other codes.
    options[1] = "codebook_size=64"
    assert encode(tmp_path, capsys, *train, "--codec", str(file), *options)["encoded"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--codec", "toi"], "kind is 'toi', wanted one of"),
        (["--codec", "toy", "--codec-option", "x"], "'x' given, wanted KEY=VALUE"),
        (["--codec", "toy", "--codec-option", "chanel=0"], "did you mean channel?"),
        (["--codec", "gone.yaml"], "no such config file: gone.yaml"),
        (["--codec", "toy", "--workers", "0"], "wanted a whole number >= 1"),
        ([], "--codec"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, arguments, message):
    try:
        status = main(["data", "encode", TRAIN, "--cache", str(tmp_path), *arguments])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run(tmp_path, capsys, monkeypatch):
    shutil.copytree(FOLDER / "audio", tmp_path / "audio")
    shutil.copy(FOLDER / "scored.jsonl", tmp_path)
    (record,) = blocks("json")
    (tmp_path / "train.jsonl").write_text(record, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("bash")
    statuses = [main(shlex.split(line)[1:]) for line in commands.splitlines()]
    out = capsys.readouterr().out
    assert statuses == [0, 0, 0], out
    assert "records     1 (1 clean)" in out and "pairs       4 of 8 records" in out
    (code,) = blocks("python")
    exec(code, {})
    assert "Oslo." in capsys.readouterr().out


def test_the_page_has_every_option():
    from wavalign_fast.cli import _parser

    data = next(iter(_parser()._subparsers._group_actions)).choices["data"]
    own = next(iter(data._subparsers._group_actions)).choices
    assert set(own) == {"check", "pairs", "encode"}
    for command, parser in own.items():
        assert f"data {command}" in PAGE
        options = {*parser._option_string_actions} - {"-h", "--help"}
        assert len(options) > 4
        missing = [option for option in options if not re.search(rf"{option}\b", PAGE)]
        assert not missing, (command, missing)
