"""What a judge sends, and how many requests run side by side, are kept, counted and missing."""

import asyncio
import base64
import json
import logging
import threading
import time

import pytest

from tests.rewards.loopback_judge import LoopbackJudge, fails, hangs, says, scores
from wavalign_fast.errors import UserError
from wavalign_fast.rewards.judge import Judge, JudgeError
from wavalign_fast.rewards.judge.options import JudgeOptions

KEY = "sk-very-secret-0123456789"


def test_a_request_is_that_of_the_protocol(make_judge, request_of):
    with LoopbackJudge() as server:
        judge = make_judge(server.url, {"OPENAI_API_KEY": f"{KEY}\n"}, body={"seed": 7})
        request = request_of("Tea < coffee", question="Tea & coffee?")
        (found,) = judge.start([request]).result()
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    body = asked.body
    assert body["model"] == "ear-1" and body["temperature"] == 0 and body["max_tokens"] == 400
    assert body["seed"] == 7
    text, sound = asked.parts
    assert text["text"] == (
        "<question>Tea &amp; coffee?</question>\n<transcript>Tea &lt; coffee</transcript>"
    )
    assert base64.b64decode(sound["input_audio"]["data"]) == request.wav
    assert sound["input_audio"]["format"] == "wav" and sound["type"] == "input_audio"
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True and schema["schema"]["additionalProperties"] is False
    assert list(schema["schema"]["properties"]) == ["justification", "score"]
    assert schema["schema"]["properties"]["score"] == {
        "type": "integer", "minimum": 1, "maximum": 5,
    }  # fmt: skip
    assert found.score == 4.0 and found.justification == "Fits."


def test_sound_may_go_as_a_data_address(make_judge, request_of):
    with LoopbackJudge() as server:
        make_judge(server.url, audio="audio_url").start([request_of()]).result()
    part = server.asked[0].parts[1]
    assert part["type"] == "audio_url"
    kind, _, data = part["audio_url"]["url"].partition(",")
    assert kind == "data:audio/wav;base64" and base64.b64decode(data) == request_of().wav


def test_a_reply_without_sound_goes_to_the_judge_of_text(make_judge, request_of):
    with LoopbackJudge() as server:
        silent = request_of(wav=None)
        (found,) = make_judge(server.url).start([silent]).result()
        assert found.cause == "no_audio" and not server.asked
        judge = make_judge(server.url, text_model="reader-1")
        found = judge.start([silent, request_of()]).result()
        assert [one.score for one in found] == [4.0, 4.0]
        assert {(one.body["model"], len(one.parts)) for one in server.asked} == {
            ("reader-1", 1), ("ear-1", 2),
        }  # fmt: skip
        make_judge(server.url, audio="none").start([request_of()]).result()
        last = server.asked[-1]
        assert last.body["model"] == "ear-1" and last.parts[0]["type"] == "text"


@pytest.mark.parametrize(("mode", "requests"), [("two_scores", 1), ("two_requests", 2)])
@pytest.mark.parametrize("form", ["json_schema", "tags"])
def test_two_scores_count_by_their_weights(make_judge, request_of, mode, requests, form):
    async def judges(asked, writer):
        both = {"semantic": 5, "acoustic": 2}
        wanted = {axis: score for axis, score in both.items() if f"{axis}: the" in asked.system}
        assert len(wanted) == 2 // requests
        await scores(**wanted)(asked, writer)

    with LoopbackJudge(judges) as server:
        judge = make_judge(server.url, mode=mode, response_format=form)
        (found,) = judge.start([request_of()]).result()
        assert len(server.asked) == requests
        weights = {"semantic_weight": 1.0, "acoustic_weight": 3.0}
        judge = make_judge(server.url, mode=mode, response_format=form, **weights)
        assert judge.start([request_of()]).result()[0].score == (5 + 3 * 2) / 4
    assert found.scores == {"semantic": 5.0, "acoustic": 2.0}
    assert found.score == pytest.approx(0.7 * 5 + 0.3 * 2)


def test_one_of_two_scores_alone_is_missing(make_judge, request_of):
    with LoopbackJudge(says('{"semantic": 4}')) as server:
        (found,) = make_judge(server.url, mode="two_scores").start([request_of()]).result()
    assert found.cause == "no_score" and "acoustic" in found.detail and found.scores == {}


def test_all_requests_of_a_step_run_at_once(make_judge, request_of):
    """Each waits until as many are there as may be at once; one after another would hang."""
    limit, number = 5, 12

    async def waits(asked, writer):
        for _ in range(200):
            if server.most_at_once >= limit or asked.number >= limit + 1:
                break
            await asyncio.sleep(0.01)
        await scores()(asked, writer)

    with LoopbackJudge(scores(), waits) as server:
        judge = make_judge(server.url, concurrency=limit, timeout_s=5.0)
        found = judge.start([request_of(str(n)) for n in range(number)]).result()
    assert [one.score for one in found] == [4.0] * number
    assert server.most_at_once == limit


def test_the_format_is_looked_for_once_a_run(make_judge, request_of):
    async def only_tags(asked, writer):
        await (scores() if asked.format == "tags" else fails(400))(asked, writer)

    with LoopbackJudge(only_tags) as server:
        judge = make_judge(server.url)
        for step in range(2):
            found = judge.start([request_of(f"{step} {n}") for n in range(6)]).result()
            assert [one.score for one in found] == [4.0] * 6
        formats = [asked.format for asked in server.asked]
    assert formats == ["json_schema", "json_object", *["tags"] * 12]
    assert judge.response_format == "tags"


def test_the_rate_of_requests_is_limited(make_judge, request_of):
    starts = []

    async def noted(asked, writer):
        starts.append(time.monotonic())
        await scores()(asked, writer)

    with LoopbackJudge(noted) as server:
        judge = make_judge(server.url, requests_per_minute=600.0)
        judge.start([request_of(str(n)) for n in range(4)]).result()
    assert starts[-1] - starts[0] > 0.25  # four, a tenth of a second apart


def test_starting_does_not_wait_and_collecting_does(make_judge, request_of):
    release = threading.Event()

    async def waits(asked, writer):
        while not release.is_set():
            await asyncio.sleep(0.005)
        await scores()(asked, writer)

    with LoopbackJudge(waits) as server:
        judging = make_judge(server.url, timeout_s=10.0, deadline_s=10.0).start([request_of()])
        assert not judging.done()
        release.set()
        assert judging.result()[0].score == 4.0 and judging.done()
        assert judging.result() is judging.result()


@pytest.mark.parametrize("by", ["result", "group"])
def test_what_is_late_is_missing_and_the_rest_is_kept(make_judge, request_of, by):
    async def slow_for_one(asked, writer):
        await (hangs if asked.transcript == "slow" else scores())(asked, writer)

    with LoopbackJudge(slow_for_one) as server:
        limits = {"timeout_s": 20.0, "deadline_s": 20.0, "response_format": "json_schema"}
        limits["group_deadline_s"] = 0.5 if by == "group" else 20.0
        judging = make_judge(server.url, **limits).start([request_of("slow"), request_of("quick")])
        found = judging.result(0.5 if by == "result" else None)
    assert [(one.score, one.cause) for one in found] == [(None, "deadline"), (4.0, None)]
    assert judging.metrics()["judge/missing_deadline"] == 1


def test_too_many_missing_scores_stop_the_run(make_judge, request_of):
    async def by_transcript(asked, writer):
        await (says("Hm.") if "bad" in asked.transcript else scores())(asked, writer)

    def judged(judge, bad, good):
        names = [f"bad {n}" for n in range(bad)] + [f"good {n}" for n in range(good)]
        return judge.start([request_of(name) for name in names]).result()

    with LoopbackJudge(by_transcript) as server:
        judge = make_judge(server.url, max_missing=0.5)
        assert sum(one.score is None for one in judged(judge, 2, 2)) == 2
        judged(judge, 0, 4)
        judged(judge, 2, 1)  # a small step alone decides nothing: 4 of the last 11
        message = r"70 of the last 71 .* at most 0.5 \(max_missing\): no_score 70, such as"
        with pytest.raises(JudgeError, match=message):
            judged(judge, 70, 1)
        strict = make_judge(server.url, max_missing=0.0)
        judged(strict, 0, 3)
        with pytest.raises(JudgeError, match="1 of the last 4"):
            judged(strict, 1, 0)


def test_after_a_wrong_key_nothing_more_is_sent(make_judge, request_of):
    with LoopbackJudge(fails(401, f"Incorrect API key provided: {KEY}")) as server:
        judge = make_judge(server.url, {"OPENAI_API_KEY": KEY})
        with pytest.raises(JudgeError, match=r"the key is wrong .*provided: \*\*\*") as stop:
            judge.start([request_of(str(n)) for n in range(20)]).result()
        assert len(server.asked) == 1
    assert KEY not in str(stop.value) and KEY not in repr(vars(stop.value))


def test_what_was_judged_once_is_kept(make_judge, request_of, tmp_path):
    with LoopbackJudge(scores(2), scores(5)) as server:
        options = {"cache": tmp_path / "kept"}
        same = [request_of(), request_of()]
        judging = make_judge(server.url, **options).start(same)
        assert [one.score for one in judging.result()] == [2.0, 2.0]
        assert judging.metrics()["judge/cached"] == 1 and len(server.asked) == 1
        judging = make_judge(server.url, **options).start(same)
        found = judging.result()
        assert [one.score for one in found] == [2.0, 2.0] and len(server.asked) == 1
        assert found[0].justification == "Fits." and judging.metrics()["judge/cached"] == 2
        for other in (request_of("Other."), request_of(wav=b"RIFFother"), request_of(question="?")):
            assert make_judge(server.url, **options).start([other]).result()[0].score == 5.0
        for change in ({"model": "ear-2"}, {"temperature": 1.0}, {"mode": "two_scores"}):
            make_judge(server.url, **options, **change).start([request_of()]).result()
        assert len(server.asked) == 7
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": "other"}', b"\xff\x00", None])
def test_a_damaged_file_of_the_cache_is_asked_again(make_judge, request_of, tmp_path, damage):
    with LoopbackJudge(scores(2), scores(3)) as server:
        judge = make_judge(server.url, cache=tmp_path)
        judge.start([request_of()]).result()
        (file,) = tmp_path.rglob("*.json")
        entry = json.loads(file.read_text())
        entry["scores"]["score"] = 9
        file.write_bytes(json.dumps(entry).encode() if damage is None else damage)
        assert judge.start([request_of()]).result()[0].score == 3.0
        assert json.loads(file.read_text())["scores"] == {"score": 3.0}


def test_a_missing_score_is_not_kept(make_judge, request_of, tmp_path):
    with LoopbackJudge(says("Hm."), scores(3)) as server:
        judge = make_judge(server.url, cache=tmp_path)
        assert judge.start([request_of()]).result()[0].cause == "no_score"
        assert judge.start([request_of()]).result()[0].score == 3.0


def test_everything_is_counted(make_judge, request_of, caplog):
    behaviours = [scores(), fails(500), says("<score>3</score>", usage=None), says("Hm.")]
    caplog.set_level(logging.INFO, "wavalign_fast.rewards.judge.judge")
    with LoopbackJudge(*behaviours) as server:
        judge = make_judge(
            server.url, {"OPENAI_API_KEY": KEY}, price_in=2.0, price_out=10.0, concurrency=1
        )
        judging = judge.start([request_of(), request_of(), request_of("B"), request_of("C")])
        judging.result()
    found = judging.metrics()
    p50, p95 = found.pop("judge/latency_p50_s"), found.pop("judge/latency_p95_s")
    assert 0 < p50 <= p95 < 1
    assert found.pop("judge/cost") == pytest.approx(2 * (412 * 2 + 61 * 10) / 1e6)
    assert found == {
        "judge/asked": 4, "judge/calls": 4, "judge/cached": 1, "judge/retried": 1,
        "judge/missing": 1, "judge/missing_no_score": 1, "judge/without_usage": 1,
        "judge/prompt_tokens": 824, "judge/completion_tokens": 122,
    }  # fmt: skip
    assert "retried 1" in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize(
    ("environ", "options", "message"),
    [
        ({}, {"key_variable": "MY_KEY"}, "MY_KEY is not set or empty"),
        ({"MY_KEY": " "}, {"key_variable": "MY_KEY"}, "MY_KEY is not set or empty"),
        ({"OPENAI_API_KEY": f"{KEY} x"}, {}, "a space or a sign"),
        ({"OPENAI_API_KEY": f"{KEY}\nx"}, {}, "a space or a sign"),
        ({}, {"rubric": "none.txt"}, "no such file: none.txt"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_at_the_start(
    make_judge, environ, options, message
):
    with pytest.raises(UserError, match=message) as refused:
        make_judge("http://127.0.0.1/v1", environ, **options)
    assert KEY not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "wavalign_fast.rewards.judge.sender", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(JudgeError, match=r"httpx is not installed; .*wavalign-fast\[judge\]"):
        Judge(JudgeOptions(url="http://h/v1", model="m"), {})


def test_a_closed_judge_takes_no_requests(make_judge, request_of):
    judge = make_judge("http://127.0.0.1/v1")
    judge.close()
    with pytest.raises(RuntimeError, match="closed"):
        judge.start([request_of()])
