"""``wavalign-fast judge check`` against a judge on this machine."""

import base64
import re
import shlex
from pathlib import Path

import pytest

from tests.rewards.loopback_judge import LoopbackJudge, fails, scores, takes_only
from wavalign_fast import cli
from wavalign_fast.speech.wave_files import read_wave

DOCS = (Path(__file__).parents[2] / "docs" / "judge.md").read_text(encoding="utf-8")


@pytest.fixture
def check(capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*argv):
        status = cli.main(["judge", "check", *map(str, argv)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_it_shows_what_works(check):
    with LoopbackJudge(takes_only("json_object")) as server:
        status, out, err = check("--url", server.url, "--model", "ear-1")
    assert (status, err) == (0, "")
    first, second, third, fourth = out.splitlines()
    assert first == f"judge {server.url}/chat/completions, model ear-1"
    assert re.fullmatch(
        r"asked by json_object, sound as input_audio: \d+\.\d\d s, 412 tokens read, 61 written",
        second,
    )
    assert third == "score 4" and fourth == "justification: Fits."
    wave, rate = read_wave(base64.b64decode(server.asked[0].parts[1]["input_audio"]["data"]))
    assert rate == 16_000 and wave.shape == (1, 16_000) and 0.25 < float(wave.max()) < 0.35


def test_a_file_and_options_that_win_over_it(check, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    config, wav = tmp_path / "judge.yaml", tmp_path / "reply.wav"
    wav.write_bytes(b"RIFF-the-reply")
    with LoopbackJudge(scores(semantic=5, acoustic=2)) as server:
        config.write_text(
            f"judge:\n  url: {server.url}\n  model: other\n  key_variable: JUDGE_KEY\n"
            f"  cache: {tmp_path}/kept\n  mode: two_scores\n"
        )
        for _ in range(2):
            status, out, _ = check(
                "--config", config, "--model", "ear-1", "--audio", "audio_url", "--wav", wav,
                "--question", "Well?", "--transcript", "Yes.",
            )  # fmt: skip
    assert status == 0 and "score 4.1 (semantic 5, acoustic 2)" in out and "secret" not in out
    first, second = server.asked  # none came from the cache
    assert second.body["model"] == "ear-1" and first.headers["authorization"] == "Bearer sk-secret"
    text, sound = second.parts
    assert text["text"] == "<question>Well?</question>\n<transcript>Yes.</transcript>"
    assert base64.b64decode(sound["audio_url"]["url"].split(",")[1]) == wav.read_bytes()


def test_no_score_has_its_cause(check):
    with LoopbackJudge(fails(400, "audio is not supported")) as server:
        status, out, err = check("--url", server.url, "--model", "ear-1")
    assert status == 1 and "score" not in out
    assert err == "wavalign-fast: no score: audio_refused: status 400: audio is not supported\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--url: nothing given, wanted the address of a judge"),
        (["--url", "http://h/v1"], "judge: model: nothing given"),
        (["--url", "h", "--model", "m"], "judge: url: scheme '' given"),
        (["--url", "http://h", "--model", "m", "--wav", "none.wav"], "no such file: none.wav"),
        (["--url", "http://h", "--model", "m", "--key-variable", "NONE_1"], "NONE_1 is not set"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_a_mistake_is_one_line(check, argv, message):
    status, out, err = check(*argv)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_wrong_key_is_said(check):
    with LoopbackJudge(fails(401, "no")) as server:
        status, _, err = check("--url", server.url, "--model", "ear-1")
    assert status == 2 and "the key is wrong or missing" in err


def test_the_commands_of_the_docs_are_ones():
    (block,) = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    for line in block.splitlines():
        assert cli._parse(shlex.split(line)[1:]).command.__name__ == "judge_check"
