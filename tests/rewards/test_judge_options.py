"""The options of a judge: what is refused, and where requests go."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from wavalign_fast.rewards.judge.judge import rubrics_of
from wavalign_fast.rewards.judge.options import JudgeOptions
from wavalign_fast.rewards.judge.rubrics import FORMATS

DOCS = (Path(__file__).parents[2] / "docs" / "judge.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:8000/v1", "http://h:8000/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/openai?api-version=3", "https://h/openai/chat/completions?api-version=3"),
    ],
)
def test_requests_go_to_the_chat_endpoint(url, address):
    assert JudgeOptions(url=url, model="m").address == address


SECRET = "sk-very-secret"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "h/v1"}, "wanted http://HOST/v1"),
        ({"url": "ftp://h/v1"}, "scheme 'ftp' given"),
        ({"url": "http://h:port/v1"}, "no address"),
        ({"url": f"http://h:{SECRET}"}, "no address"),
        ({"url": f"http://me:{SECRET}@h/v1"}, "has a key or a password in it"),
        ({"url": f"http://h/v1?key={SECRET}"}, "has a key or a password in it"),
        ({"url": f"http://h/v1?api_key={SECRET}"}, "has a key or a password in it"),
        ({"model": ""}, "model: nothing given"),
        ({"key_variable": SECRET}, "no name of a variable"),
        ({"mode": "two_scores", "semantic_weight": 0.0, "acoustic_weight": 0.0}, "both 0"),
        ({"mode": "two_requests", "rubric": "r.txt"}, "wanted two_scores"),
    ],
)
def test_what_cannot_be_asked_is_refused_without_showing_a_secret(options, message):
    with pytest.raises(ValidationError, match=re.escape(message)) as refused:
        JudgeOptions(**({"url": "http://h/v1", "model": "m"} | options))
    assert SECRET not in str(refused.value)


def test_without_an_address_there_is_no_judge():
    assert JudgeOptions().url is None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["holistic", "two_scores", "two_requests"])
def test_our_rubrics_ask_for_what_is_read(mode, name):
    axes = []
    for rubric in rubrics_of(JudgeOptions(url="http://h/v1", model="m", mode=mode)):
        told = rubric.system(name)
        for axis in rubric.axes:
            assert f"\n{axis}: " in told
            assert all(f"\n{score}: " in told for score in range(1, 6))
        axes += rubric.axes
        if name != "tags":
            assert "JSON" in told  # OpenAI refuses json_object otherwise
    assert axes == (["score"] if mode == "holistic" else ["semantic", "acoustic"])


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"x" * 100_001])
def test_a_rubric_that_is_none_is_refused(tmp_path, content):
    file = tmp_path / "rubric.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"rubric\.txt"):
        rubrics_of(JudgeOptions(url="http://h/v1", model="m", rubric=file))


def test_the_example_of_the_docs_is_one():
    block = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[0]
    assert JudgeOptions(**yaml.safe_load(block)["judge"]).key_variable == "JUDGE_KEY"
    for word in re.findall(r"`([a-z_]+): [^`]+`", DOCS):
        assert word in {*JudgeOptions.model_fields, "when_missing"}, word


def test_every_cause_is_in_the_docs():
    package = Path(__file__).parents[2] / "wavalign_fast" / "rewards" / "judge"
    source = "".join(file.read_text(encoding="utf-8") for file in package.glob("*.py"))
    causes = set(re.findall(r'(?:PassingError|MissingScoreError)\(\s*"([a-z_]+)"', source))
    assert len(causes) > 12
    assert not [cause for cause in causes if f"`{cause}`" not in DOCS]
