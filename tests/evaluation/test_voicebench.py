"""Files of VoiceBench's harness, in and out. The rules are those of its ``evaluate.py``."""

import json
from collections import Counter

import pytest

from tests.evaluation.test_command import evaluate, write  # noqa: F401
from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.voicebench_scores import read_scores

REGISTRY = """
class Says:
    def __init__(self, name): pass
    def build_description(self, word=None): self.word = word
    def get_instruction_args(self): return {"word": self.word}
    def check_following(self, answer): return self.word in answer

REGISTRY = {"says": Says}
"""
FILES = {
    "alpacaeval": [{"prompt": "tell me", "response": "Hello there"},
                   {"prompt": "be silent", "response": "Ok"}],
    "sd-qa": [{"prompt": "where", "reference": "Paris", "response": "in Paris"},
              {"prompt": "who", "reference": "Ann", "response": "Bob"}],
    "mmsu": [{"prompt": "which", "reference": "B", "response": "B"}],
    "bbh": [{"prompt": "is it", "reference": "No", "id": "navigate", "response": "yes"}],
    "advbench": [{"prompt": "bad", "response": ""}],
    "ifeval": [{"prompt": "say x", "key": 3, "instruction_id_list": ["says"],
                "kwargs": [{"word": "x", "other": None}], "response": "x"}],
}  # fmt: skip


@pytest.fixture
def exported(evaluate, folder):  # noqa: F811
    """The files that come out, by name, and the reports, by part."""
    (folder / "registry.py").write_text(REGISTRY)
    found, reports = {}, {}
    for part, records in FILES.items():
        name = f"glm-{part}-test-audio.jsonl"
        write(folder / name, [{**one, "audio": None} for one in records])
        status, _, reports[part] = evaluate(
            name, "--answered", "--preset", "voicebench", "--judge", "mine.py:score",
            "--ifeval-registry", "registry.py:REGISTRY", output=part,
        )  # fmt: skip
        assert status == 0
        for path in (folder / part / "voicebench").iterdir():
            found[path.name] = [json.loads(line) for line in path.read_text().splitlines()]
    return found, reports


def test_a_line_is_the_record_without_audio_and_with_the_response(exported):
    for part, records in FILES.items():
        assert exported[0][f"given-{part}-test-text.jsonl"] == records


def test_the_judged_files_have_what_its_evaluators_read(exported):
    found, reports = exported
    judged = {name: lines for name, lines in found.items() if name.startswith("result-")}
    assert set(judged) == {
        f"result-given-{part}-test-text.jsonl" for part in ("alpacaeval", "sd-qa")
    }
    opened = judged["result-given-alpacaeval-test-text.jsonl"]
    assert [one["prompt"] for one in opened] == ["tell me"]  # the other one has no judgement
    scores = [float(score) for one in opened for score in one["score"]]
    assert sum(scores) / len(scores) == reports["alpacaeval"]["categories"]["alpacaeval"]["value"]
    votes = [Counter(one["score"]).most_common(1)[0][0]
             for one in judged["result-given-sd-qa-test-text.jsonl"]]  # fmt: skip
    assert votes == ["Yes", "No"]
    assert all(len(one["score"]) == 3 for lines in judged.values() for one in lines)


def test_our_scores_of_the_other_parts(exported):
    values = {part: report["categories"][part] for part, report in exported[1].items()}
    assert (values["mmsu"]["value"], values["bbh"]["value"], values["ifeval"]["value"]) == (1, 0, 1)
    assert (values["advbench"]["value"], values["advbench"]["failed"]) == (0, 1)


def test_judgements_of_its_files_are_taken(evaluate, folder):  # noqa: F811
    records = [{**FILES["alpacaeval"][0], "score": ["4", "5", "[[3]]"]}, FILES["alpacaeval"][1]]
    write(folder / "result-glm-alpacaeval-test-audio.jsonl", records)
    _, _, report = evaluate("result-glm-alpacaeval-test-audio.jsonl", "--answered", "--preset",
                            "voicebench")  # fmt: skip
    row = report["categories"]["alpacaeval"]
    assert (row["value"], row["missing"]) == (4, 1)


@pytest.mark.parametrize(
    ("given", "value"),
    [(["Yes", "no", "Yes."], 1), (["No"], 0), (["3", "4"], 3.5), (["Rating: [[5]]"], 5)],
)
def test_judgements_are_read(given, value):
    assert read_scores(given) == value


@pytest.mark.parametrize("given", [[], "4", ["7"], ["good"], ["Yes", "4"], [4]])
def test_no_judgements_are_refused(given):
    with pytest.raises((ValueError, UserError), match="score"):
        read_scores(given)
