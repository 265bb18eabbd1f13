"""The stages: each answer is asked for once, wherever the run is stopped."""

import dataclasses
import json

import pytest

from tests.evaluation.pretended import Counting, TinyCodec, finish, plan, prompts
from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.results_file import read_results
from wavalign_fast.evaluation.run import run
from wavalign_fast.evaluation.stages import Stages
from wavalign_fast.evaluation.table import read_report

FILES = ("responses", "wavs", "heard", "scores", "results")


@pytest.fixture
def whole(tmp_path):
    """A directory in which everything is done, and what was asked for it."""
    directory, counting = tmp_path / "whole", Counting()
    directory.mkdir()
    steps = finish(plan(directory, counting))
    return directory, counting, steps


def records(directory, stage):
    return [json.loads(line) for line in (directory / f"{stage}.jsonl").read_text().splitlines()]


def test_the_stages_and_their_files(whole):
    directory, counting, steps = whole
    assert counting.model == [f"p{place}" for place in range(5)]
    responses = records(directory, "responses")
    assert [one["id"] for one in responses] == counting.model
    assert all(len(one["ids"]) == 8 or one["ids"][-1] == 1 for one in responses)
    spoken = [one["id"] for one in responses if one["codes"]]
    assert spoken and [one["id"] for one in records(directory, "wavs")] == spoken
    assert len(counting.recogniser) == len(spoken)
    assert {step.stage for step in steps} == {"responses", "wavs", "heard", "scores"}
    assert all(one.done <= one.total for one in steps) and steps[-1].done == steps[-1].total
    for one in read_results(directory):
        assert one.words == len(one.text.split()) if one.text else one.words == 0
        assert (one.wav is not None) == (one.id in spoken)


def test_a_second_call_asks_for_nothing(whole):
    directory, counting, _ = whole
    before = {name: (directory / f"{name}.jsonl").read_bytes() for name in FILES}
    asked = [list(one) for one in vars(counting).values()]
    assert finish(plan(directory, counting)) == []
    assert [list(one) for one in vars(counting).values()] == asked
    assert {name: (directory / f"{name}.jsonl").read_bytes() for name in FILES} == before


def test_stopped_anywhere_it_goes_on_without_asking_twice(tmp_path, whole):
    _, at_once, steps = whole
    for stop in range(1, len(steps)):
        directory, counting = tmp_path / f"stop{stop}", Counting()
        directory.mkdir()
        for count, _ in enumerate(run(plan(directory, counting)), start=1):
            if count == stop:
                break
        finish(plan(directory, counting))
        for name, asked in vars(counting).items():
            assert sorted(asked) == sorted(getattr(at_once, name)), (stop, name)
        assert [one.as_record() for one in read_results(directory)] == [
            one.as_record() for one in read_results(whole[0])
        ]


def test_half_a_line_is_asked_again_and_only_that(whole):
    directory, counting, _ = whole
    path = directory / "responses.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    counting.model.clear()
    finish(plan(directory, counting))
    assert counting.model == ["p4"] and path.read_bytes() == b"".join(lines)
    assert read_report(directory)["notes"] == []


def test_a_damaged_line_is_named_and_asked_again(whole):
    directory, counting, _ = whole
    path = directory / "responses.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{damaged\n", *lines[2:]]))
    counting.model.clear()
    finish(plan(directory, counting))
    assert counting.model == ["p1"]
    (note,) = read_report(directory)["notes"]
    assert note.startswith(f"{path}:2: malformed JSON")


def test_a_changed_option_is_refused_by_name(whole):
    directory, counting, _ = whole
    changed = {"responses": {"--temperature": 0.5}}
    with pytest.raises(UserError, match=r"^--temperature: 0.5 given, but responses.jsonl was made "
                       r"with 0.0; .*--redo responses"):  # fmt: skip
        finish(plan(directory, counting, settings=changed))
    Stages(directory).redo("responses")
    counting.model.clear()
    finish(plan(directory, counting, settings=changed))
    assert len(counting.model) == 5


def test_redoing_the_scores_keeps_the_answers(whole):
    directory, counting, _ = whole
    Stages(directory).redo("scores")
    counting.model.clear()
    asked = len(counting.judge)
    finish(plan(directory, counting, settings={"scores": {"--judge": "other"}}))
    assert counting.model == [] and len(counting.judge) == 2 * asked


def test_another_question_under_the_same_id_is_refused(whole):
    directory, counting, _ = whole
    asked = prompts()
    asked[3] = dataclasses.replace(asked[3], messages=(("user", "another"),))
    with pytest.raises(UserError, match=r"^f:4: the record p3 asks something else"):
        finish(plan(directory, counting, asked=asked))


def test_new_prompts_are_added(whole):
    directory, counting, _ = whole
    counting.model.clear()
    finish(plan(directory, counting, asked=prompts(7)))
    assert counting.model == ["p5", "p6"] and len(read_results(directory)) == 7


def test_a_prompt_that_cannot_be_asked_fails_and_the_others_are_asked(tmp_path):
    asked = prompts()
    asked[2] = dataclasses.replace(asked[2], messages=(("user", "a sound"),))
    asked[4] = dataclasses.replace(asked[4], messages=(("user", "x" * 33),))
    finish(plan(tmp_path, Counting(), asked=asked))
    found = {one.id: one for one in read_results(tmp_path)}
    assert found["p2"].status == "failed" and found["p2"].cause == "no ears"
    assert found["p4"].cause.startswith("the prompt has 33 ids, wanted at most 32")
    assert found["p4"].score == 1  # an open answer: 1 to 5
    assert [one.asked_at_all for one in found.values()] == [True, True, False, True, False]


def test_an_answer_that_cannot_be_decoded_leaves_the_others_their_sound(tmp_path, whole):
    coded = [one for one in records(whole[0], "responses") if one["codes"]]
    bad = coded[0]["codes"][0]
    counting = Counting()
    changed = plan(tmp_path, counting)
    codec = TinyCodec(counting, refuses=bad)
    finish(dataclasses.replace(changed, codec=codec))
    lines = {one["id"]: one for one in records(tmp_path, "wavs")}
    refused = {one["id"] for one in coded if bad in one["codes"]}
    assert {name for name, one in lines.items() if one["wav"] is None} == refused
    for one in read_results(tmp_path):
        assert (one.wav is None) == (one.id in refused or not lines.get(one.id))
        if one.task == "style" and one.id in refused:
            assert (one.status, one.cause) == ("missing", f"code {bad} is out of range")
    finish(changed)  # a later call tries it again
    assert all(one.wav for one in read_results(tmp_path) if one.id in refused)


def test_speech_without_a_codec_is_missing_and_said(tmp_path):
    asked = [dataclasses.replace(one, task="spoken", category="s") for one in prompts(6)]
    finish(plan(tmp_path, Counting(), asked=asked, codec=False))
    row = read_report(tmp_path)["categories"]["s"]
    spoken = sum(one.codes > 0 for one in read_results(tmp_path))
    assert row["missing"] == spoken == row["causes"]["no sound (--codec)"]
    assert row["failed"] == 6 - spoken
