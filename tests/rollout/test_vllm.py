"""The client of vLLM against a server in this process that speaks its routes."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.rollout.vllm_loopback import LoopbackVLLM
from wavalign_fast.errors import UserError
from wavalign_fast.models import PromptEmbeddings
from wavalign_fast.rollout.engine import RolloutRequest
from wavalign_fast.rollout.token_answers import AnswerChecks, EngineError, WeightLabels
from wavalign_fast.rollout.vllm import VLLMServer
from wavalign_fast.rollout.vllm_in_process import VLLMInProcess, with_vectors
from wavalign_fast.rollout.weight_files import write_model

VOCAB, EOS = 16, 1
PLAIN = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
LABELS = WeightLabels("run")
RECORDED = Path(__file__).parents[1] / "data" / "vllm" / "recorded.json"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    directory = tmp_path_factory.mktemp("weights")
    write_model(Qwen2ForCausalLM(config).eval(), directory)
    return directory


@pytest.fixture
def loopback():
    with LoopbackVLLM() as server:
        yield server


def client(loopback, *, timeout_s: float = 20.0, start_timeout_s: float = 20.0, **rest):
    return VLLMServer(loopback.url, timeout_s=timeout_s, start_timeout_s=start_timeout_s, **rest)


def request(**changes) -> RolloutRequest:
    settings = {
        "prompt_ids": [[2, 3, 4], [5, 6]],
        "places": [1, 3],
        "step": 7,
        "seed": 5,
        "group_size": 3,
        "max_new_tokens": 6,
        "ends": frozenset([EOS]),
        "temperature": 0.8,
    }
    return RolloutRequest(**settings | changes)


def checks(max_staleness: int = 0) -> AnswerChecks:
    return AnswerChecks(VOCAB, LABELS, max_staleness)


def sampled(server: VLLMServer, asked: RolloutRequest, max_staleness: int = 0):
    its = checks(max_staleness)
    return its.rollouts(asked, server.generate(its.bodies(asked, PLAIN)))


def test_weights_change_while_nothing_runs(loopback, weights) -> None:
    server = client(loopback)
    server.load(weights, "run:7")
    assert loopback.calls == [
        "/pause?mode=wait",
        "/collective_rpc",
        "/update_weight_version",
        "/reset_prefix_cache",
        "/resume",
    ]
    assert loopback.loaded == [weights]
    assert loopback.label == "run:7"


def test_completions_come_with_log_probs_and_versions(loopback, weights) -> None:
    server = client(loopback)
    server.load(weights, "run:7")
    found = sampled(server, request())
    assert len(found) == 6
    for done in found:
        assert done.versions.tolist() == [7] * len(done.ids)
        assert done.ended == (done.ids[-1] == EOS)
        assert done.logps.shape == (len(done.ids),)
    prompts = [(2, 3, 4)] * 3 + [(5, 6)] * 3
    for prompt, done in zip(prompts, found, strict=True):
        ids = torch.tensor([[*prompt, *done.ids]])
        logits = loopback.model(ids).logits[0, len(prompt) - 1 : -1] / 0.8
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(done.ids)[:, None])[:, 0]
        torch.testing.assert_close(done.logps, wanted.detach(), rtol=0, atol=1e-5)


def test_the_request_is_the_documented_one(loopback, weights) -> None:
    server = client(loopback)
    server.load(weights, "run:7")
    sampled(server, request(ends=frozenset([9, EOS])))
    first = min(loopback.bodies, key=lambda body: body["token_ids"])
    seed = first["sampling_params"].pop("seed")
    assert first == {
        "token_ids": [2, 3, 4],
        "sampling_params": {
            "n": 3,
            "temperature": 0.8,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "max_tokens": 6,
            "logprobs": 0,
            "stop_token_ids": [EOS, 9],
            "ignore_eos": True,
            "detokenize": False,
        },
    }
    other = max(loopback.bodies, key=lambda body: body["token_ids"])["sampling_params"]["seed"]
    assert abs(seed - other) > 3  # vLLM adds a completion's number to it
    loopback.bodies.clear()
    sampled(server, request(ends=frozenset([9, EOS])))
    assert {body["sampling_params"]["seed"] for body in loopback.bodies} == {seed, other}


def test_a_real_server_answers_in_the_form_of_the_loopback(loopback, weights) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    loopback.paused = True
    loopback.lose_version, loopback.label = True, "recorded:3"
    for method, route, status, content in recorded["routes"]:
        path, _, query = route.partition("?")
        body = {"new_version": "recorded:3", "method": "reload_weights"}
        body["kwargs"] = {"weights_path": str(weights)}
        assert loopback.reply(method, path, query, body) == (status, content)
    for pair in recorded["generate"]:
        body, answer = pair["request"], pair["answer"]
        labels = WeightLabels(answer["choices"][0]["weight_versions"][0]["version"].split(":")[0])
        params = body["sampling_params"]
        asked = RolloutRequest(
            prompt_ids=[body["token_ids"]],
            places=[0],
            step=pair["step"],
            seed=0,
            group_size=params["n"],
            max_new_tokens=params["max_tokens"],
            ends=frozenset(params["stop_token_ids"]),
            temperature=params["temperature"],
        )
        its = AnswerChecks(recorded["vocabulary"], labels, 0)
        assert its.bodies(asked, PLAIN)[0]["sampling_params"].keys() == params.keys()
        found = its.rollouts(asked, [answer["choices"]])
        assert [done.ids for done in found] == [it["token_ids"] for it in answer["choices"]]
        small = params | {"stop_token_ids": []}
        own = loopback.generate({"token_ids": [2], "sampling_params": small})[1]["choices"]
        assert own[0].keys() == answer["choices"][0].keys()
        entry = answer["choices"][0]["logprobs"]["content"][0]
        assert own[0]["logprobs"]["content"][0].keys() == entry.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_ids": [[2], [VOCAB]]}, ["prompt 1", "id 16", "0 <= id < 16"]),
        ({"prompt_ids": [[2], [-1]]}, ["prompt 1", "id -1"]),
        ({"prompt_ids": [[2], []]}, ["prompt 1 is empty"]),
        ({"ends": frozenset([EOS, 99])}, ["eos_id is 99"]),
    ],
)
def test_an_id_beyond_the_vocabulary_is_never_sent(loopback, weights, changes, words) -> None:
    server = client(loopback)
    server.load(weights, "run:7")
    with pytest.raises(ValueError) as caught:
        sampled(server, request(**changes))
    assert all(word in str(caught.value) for word in words)
    assert loopback.bodies == []
    assert sampled(server, request())


def edit(key, value):
    """Changes the second completion of every prompt."""

    def change(choices):
        choices[1][key] = value(choices[1][key]) if callable(value) else value
        return choices

    return change


WRONG = {
    "a completion too few": (lambda choices: choices[:-1], ["2 completions", "wanted 3"]),
    "no ids": (edit("token_ids", []), ["completion 1", "0 ids", "1 to 6"]),
    "ids that are none": (edit("token_ids", None), ["None ids"]),
    "too many ids": (edit("token_ids", [3] * 7), ["7 ids"]),
    "an id beyond the vocabulary": (edit("token_ids", lambda ids: [VOCAB, *ids[1:]]), ["id 16"]),
    "ids behind the end": (edit("token_ids", [EOS, 3]), ["behind the end id 1"]),
    "fewer ids than asked for": (edit("token_ids", [3]), ["log-probs"]),
    "no log-probs": (edit("logprobs", None), ["0 log-probs"]),
    "a log-prob too few": (
        edit("logprobs", lambda it: {"content": it["content"][:-1]}),
        ["log-probs"],
    ),
    "log-probs of other ids": (
        edit("logprobs", lambda it: {"content": [x | {"token_id": 15} for x in it["content"]]}),
        ["other ids"],
    ),
    "a log-prob that is none": (
        edit("logprobs", lambda it: {"content": [x | {"logprob": None} for x in it["content"]]}),
        ["log-prob None"],
    ),
    "no versions": (edit("weight_versions", None), ["without the version"]),
    "versions of a part": (
        edit("weight_versions", lambda it: [it[0] | {"end": it[0]["end"] - 1}]),
        ["1 of", "without the version"],
    ),
    "another trainer's weights": (
        edit("weight_versions", lambda it: [it[0] | {"version": "other:7"}]),
        ["'other:7'", "run:7", "another trainer"],
    ),
    "the weights that the server began with": (
        edit("weight_versions", lambda it: [it[0] | {"version": "default"}]),
        ["'default'"],
    ),
    "stale weights": (
        edit("weight_versions", lambda it: [it[0] | {"version": "run:5"}]),
        ["weights of step 5", "at most 1", "rollout.vllm.max_staleness"],
    ),
    "no choices": (lambda choices: None, ["wanted a list of choices"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_refused(case, loopback, weights) -> None:
    change, words = WRONG[case]
    server = client(loopback)
    server.load(weights, "run:7")
    loopback.change = change
    with pytest.raises(EngineError) as caught:
        sampled(server, request(ends=frozenset([EOS]), seed=6), max_staleness=1)
    assert "rollout.vllm" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_an_aborted_completion_is_refused(loopback, weights) -> None:
    """It is shorter than asked for, without an end."""
    server = client(loopback)
    server.load(weights, "run:7")

    def abort(choices):
        for choice in choices:
            choice["finish_reason"] = "abort"
            choice["token_ids"] = [3]
            choice["logprobs"]["content"] = [{"token_id": 3, "logprob": -1.0}]
            choice["weight_versions"][0]["end"] = 1
        return choices

    loopback.change = abort
    with pytest.raises(EngineError, match=r"none ends it.*'abort'.*wanted an end or 6 ids"):
        sampled(server, request())


def test_stale_ids_are_taken_where_they_may_be(loopback, weights) -> None:
    server = client(loopback)
    server.load(weights, "run:5")
    found = sampled(server, request(), max_staleness=2)
    assert {int(version) for done in found for version in done.versions} == {5}


def test_versions_are_those_of_each_id(loopback, weights) -> None:
    server = client(loopback)
    server.load(weights, "run:7")

    def mixed(choices):
        for choice in choices:
            count = len(choice["token_ids"])
            choice["weight_versions"] = [
                {"version": "run:6", "start": 0, "end": 1},
                {"version": "run:7", "start": 1, "end": count},
            ]
        return choices

    loopback.change = mixed
    for done in sampled(server, request(), max_staleness=1):
        assert done.versions.tolist() == [6, *[7] * (len(done.ids) - 1)]


FAILURES = {
    "no scale-out": (
        "/inference/v1/generate", 403, "Scale-out endpoints are disabled",
        ["403", "Scale-out endpoints are disabled", "--enable-scale-out"],
    ),
    "no route": ("/collective_rpc", 404, "Not Found", ["404", "VLLM_SERVER_DEV_MODE=1"]),
    "too many completions": (
        "/inference/v1/generate", 400, "n must be at most the server's max_num_seqs",
        ["400", "max_num_seqs"],
    ),
    "an error of the engine": (
        "/inference/v1/generate", 500, "EngineCore encountered an issue", ["500", "EngineCore"],
    ),
    "weights that do not fit": ("/collective_rpc", 500, "shape mismatch", ["shape mismatch"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_route_says_what_is_wanted(case, loopback, weights) -> None:
    route, status, text, words = FAILURES[case]
    server = client(loopback)
    if route != "/collective_rpc":
        server.load(weights, "run:7")
    loopback.fail[route] = (status, text)
    with pytest.raises(EngineError) as caught:
        server.load(weights, "run:7")
        sampled(server, request())
    for word in (route, *words):
        assert word in str(caught.value)
    if route == "/collective_rpc":
        assert loopback.paused is True  # nobody samples from a mixture of weights


def test_a_dead_engine_is_called_dead(loopback, weights) -> None:
    server = client(loopback)
    server.load(weights, "run:7")
    loopback.fail["/inference/v1/generate"] = (500, "EngineCore encountered an issue")
    loopback.dead = True
    with pytest.raises(EngineError, match=r"500.*engine is dead.*503.*start the server anew"):
        sampled(server, request())


def test_a_server_that_is_gone_is_an_error_at_once(loopback, weights) -> None:
    server = client(loopback, timeout_s=60)
    server.load(weights, "run:7")
    loopback.stop()
    start = time.monotonic()
    with pytest.raises(EngineError, match="does not answer; wanted one that runs"):
        sampled(server, request())
    assert time.monotonic() - start < 10


def test_a_server_that_hangs_is_left(loopback, weights) -> None:
    server = client(loopback, timeout_s=20)
    server.load(weights, "run:7")
    server.timeout_s = 0.3
    loopback.delay_s = 3.0
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"completions within 0\.3 s \(rollout.vllm.timeout_s\)"):
        sampled(server, request())
    assert time.monotonic() - start < 2.5


def test_a_start_is_waited_for(loopback, weights) -> None:
    loopback.not_ready = 2
    server = client(loopback)
    server.load(weights, "run:1")
    assert loopback.label == "run:1"
    assert server.version() == "0.32.0"
    loopback.not_ready = 1000
    with pytest.raises(EngineError, match=r"not ready after 0\.1 s"):
        client(loopback, start_timeout_s=0.1).load(weights, "run:2")
    assert loopback.label == "run:1"


@pytest.mark.parametrize(
    ("attribute", "words"),
    [("cache_is_held", "could not empty its prefix cache"), ("lose_version", "'default'.*run:7")],
)
def test_an_update_that_did_not_happen_is_found(attribute, words, loopback, weights) -> None:
    setattr(loopback, attribute, True)
    with pytest.raises(EngineError, match=words):
        client(loopback).load(weights, "run:7")


def test_without_the_package_the_error_names_the_extra(failing_import, loopback) -> None:
    failing_import("httpx", ImportError("No module named 'httpx'"))
    with pytest.raises(UserError, match=r"httpx.*pip install 'wavalign-fast\[vllm\]'"):
        client(loopback)


def test_without_vllm_the_error_names_both_ways(failing_import) -> None:
    failing_import("vllm", ImportError("No module named 'vllm'"))
    with pytest.raises(UserError, match=r"rollout\.vllm\.url.*pip install vllm"):
        VLLMInProcess({}, timeout_s=1, start_timeout_s=1)


def test_vectors_of_prompts_stand_beside_their_ids(monkeypatch) -> None:
    asked = []

    class LLM:
        def generate(self, prompts, params, use_tqdm):
            asked.extend(prompts)
            return []

    fake = SimpleNamespace(LLM=LLM, SamplingParams=lambda **given: given)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    engine = VLLMInProcess({}, timeout_s=9, start_timeout_s=9)
    engine.llm = LLM()
    vectors = PromptEmbeddings(VOCAB)
    clip = torch.arange(1.0, 7.0).view(3, 2)
    first, *_, last = vectors.ids("clip", 3, lambda: clip)
    prompts = [[2, first, first + 1, last, 3], [5, 6], [last, 4]]
    with pytest.raises(ValueError, match=f"holds the id {VOCAB + 3}"):
        checks().bodies(request(prompt_ids=[[VOCAB + 3]]), PLAIN, vectors=3)
    bodies = checks().bodies(request(prompt_ids=prompts, places=[1, 3, 4]), PLAIN, vectors=3)
    engine.generate(with_vectors(bodies, vectors))
    assert asked[0]["prompt_is_token_ids"] == [True, False, False, False, True]
    assert torch.equal(asked[0]["prompt_embeds"][1:4], clip)
    assert asked[1] == {"prompt_token_ids": [5, 6]}
    assert asked[2]["prompt_token_ids"][1] == 4 and asked[2]["prompt_is_token_ids"] == [False, True]
    assert torch.equal(asked[2]["prompt_embeds"][0], clip[2])
    assert all(0 <= token < VOCAB for one in asked for token in one["prompt_token_ids"])
