"""The engine with vLLM itself, over HTTP and in this process: ``make test-vllm``.

It needs an environment of its own (tools/install_vllm.py), and a minute or two for each start.
"""

import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_fast.config.layers import parse_overrides, resolve_config
from wavalign_fast.data.records import Example
from wavalign_fast.models import PromptEmbeddings
from wavalign_fast.models.prompt_embeddings import EmbeddedBlock
from wavalign_fast.rollout import Twin
from wavalign_fast.rollout.engine import RolloutRequest
from wavalign_fast.rollout.token_answers import EngineError
from wavalign_fast.train.engines import VLLMEngine, rollout_engine
from wavalign_fast.train.ranks import Ranks

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

VOCAB = 320
ENDS = frozenset(range(1, 12))
OTHER_ENDS = frozenset(range(60, 120))
"""What the model's files call ends. They are none of the task: no completion ends with them."""
SMALL = {
    "gpu_memory_utilization": 0.05,
    "kv_cache_memory_bytes": 64 * 2**20,
    "enforce_eager": True,
}


class Task:
    """What an engine asks of a task.

    Args:
        vectors: those that some of its prompts would name.
    """

    def __init__(self, vectors=None) -> None:
        self.prompt_embeddings = vectors

    pad_id, eos_id = 0, tuple(ENDS)
    train_examples = tuple(
        Example(id=str(n), prompt="", prompt_ids=(2, *range(40, 41 + n), 3), reference="")
        for n in range(8)
    )


def model_of_qwen(*, tied: bool) -> Qwen2ForCausalLM:
    """Two heads of 64, the smallest size that vLLM computes on a CPU."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=list(OTHER_ENDS),
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config).eval()
    change(model, 1)
    return model


@torch.no_grad()
def change(model, seed: int) -> None:
    """Gives every weight a part of noise, so that distributions are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(0.8 * weight + 0.1 * noise)


def free_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def clips() -> PromptEmbeddings:
    """Two clips of six vectors, whose prompts differ by them alone."""
    vectors = PromptEmbeddings(VOCAB)
    for name in range(2):
        clip = torch.randn(6, 128, generator=torch.Generator().manual_seed(name))
        vectors.ids(name, 6, lambda clip=clip: clip)
    return vectors


def engine_of(kind: str, model) -> VLLMEngine:
    config = resolve_config(
        [
            {"recipe": "real"},
            parse_overrides(["rollout.engine=vllm", "rollout.max_new_tokens=24"]),
            {"rollout": {"vllm": {"options": SMALL, "timeout_s": 300.0, "start_timeout_s": 900.0}}},
        ]
    )
    if kind == "server":
        keys = {"url": free_url(), "command": [str(Path(sys.executable).parent / "vllm"), "serve"]}
        vllm = config.rollout.vllm.model_copy(update=keys)
        rollout = config.rollout.model_copy(update={"vllm": vllm})
        config = config.model_copy(update={"rollout": rollout})
    task = Task(clips() if kind != "server" else None)  # a server takes ids alone
    return rollout_engine(config, task, Twin(model), Ranks())


@pytest.fixture(scope="module", params=["server", "in this process"])
def served(request):
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    model = model_of_qwen(tied=request.param == "server")
    engine = engine_of(request.param, model)
    yield request.param, engine, model
    engine.close()


def request_of(step: int, prompts=None) -> RolloutRequest:
    prompts = prompts or [example.prompt_ids for example in Task.train_examples]
    return RolloutRequest(
        prompt_ids=prompts,
        places=range(len(prompts)),
        step=step,
        seed=3,
        group_size=4,
        max_new_tokens=24,
        ends=ENDS,
        temperature=0.8,
    )


@torch.no_grad()
def gaps(model, request: RolloutRequest, found, vectors=None) -> torch.Tensor:
    """Δ log p of every id, the model's minus the engine's."""
    vectors = PromptEmbeddings(VOCAB) if vectors is None else vectors
    every = []
    for row, done in enumerate(found):
        prompt = request.prompt_ids[row // request.group_size]
        row = vectors.fill(torch.tensor([[*prompt, *done.ids]]))
        embedded = (
            row.embedded(model)
            if isinstance(row, EmbeddedBlock)
            else model.get_input_embeddings()(row)
        )
        logits = model(inputs_embeds=embedded).logits[0, len(prompt) - 1 : -1]
        logps = (logits / request.temperature).log_softmax(-1)
        every.append(logps.gather(1, torch.tensor(done.ids)[:, None])[:, 0] - done.logps)
    return torch.cat(every)


def test_log_probs_are_the_trainers_before_and_after_an_update(served, capsys) -> None:
    kind, engine, model = served
    start = time.monotonic()
    engine.set_weights(1)
    started = time.monotonic() - start
    request = request_of(1)
    first = engine.sample(request)
    start = time.monotonic()
    again = engine.sample(request)
    sampling = time.monotonic() - start
    assert [done.ids for done in again] == [done.ids for done in first]
    before = gaps(model, request, first)
    assert len({tuple(done.ids) for done in first}) > 16
    assert {done.ended for done in first} == {True, False}
    assert any(OTHER_ENDS.intersection(done.ids[:-1]) for done in first)

    change(model, 2)
    stale = gaps(model, request, first)
    start = time.monotonic()
    engine.set_weights(2)
    updating = time.monotonic() - start
    second = engine.sample(request_of(2))
    after = gaps(model, request_of(2), second)
    assert {int(version) for done in second for version in done.versions} == {2}
    with capsys.disabled():
        print(
            f"\n{kind}: vLLM {engine.vllm.version()}, torch {torch.__version__}; "
            f"|Δ log p| mean {before.abs().mean():.1e} max {before.abs().max():.1e}; after an "
            f"update mean {after.abs().mean():.1e} max {after.abs().max():.1e}; old ids under new "
            f"weights {stale.abs().mean():.1e}; start {started:.0f} s, update {updating:.2f} s, "
            f"{len(before)} ids in {sampling:.2f} s"
        )
    assert before.abs().max() < 1e-4
    assert after.abs().max() < 1e-4
    assert stale.abs().mean() > 0.1


def test_prompts_may_hold_vectors_in_this_process(served, capsys) -> None:
    """Beside prompts of ids, and where two prompts differ by their vectors alone."""
    kind, engine, model = served
    if kind == "server":
        pytest.skip("a server takes ids alone")
    vectors = engine.vectors
    engine.set_weights(3)
    first, second = (tuple(vectors.ids(name, 6, lambda: None)) for name in range(2))
    request = request_of(3, [(2, *first, 40, 3), (2, *second, 40, 3), (2, 40, 3), (*first, 3)] * 2)
    found = engine.sample(request)
    before = gaps(model, request, found, vectors)
    change(model, 4)
    engine.set_weights(4)
    after = gaps(model, request, engine.sample(replace(request, step=4)), vectors)
    swapped = replace(request, prompt_ids=[(2, *second, 40, 3), (2, *first, 40, 3)])
    assert gaps(model, swapped, found[:8], vectors).abs().mean() > 0.1
    with capsys.disabled():
        print(
            f"\nprompts with vectors: |Δ log p| mean {before.abs().mean():.1e} max "
            f"{before.abs().max():.1e}; after an update mean {after.abs().mean():.1e} max "
            f"{after.abs().max():.1e}; {len(before)} ids"
        )
    assert before.abs().max() < 1e-4 and after.abs().max() < 1e-4


def test_a_dead_engine_is_an_error_at_once(served) -> None:
    """An id beyond the vocabulary, which the engine would never send, ends the whole server."""
    kind, engine, _ = served
    engine.set_weights(5)
    request = request_of(5)
    bodies = engine.checks.bodies(request, engine.sampling)
    bodies[0]["token_ids"] = [2, VOCAB + 5]
    start = time.monotonic()
    with pytest.raises(EngineError) as caught:
        engine.vllm.generate(bodies)
    with pytest.raises(EngineError):
        time.sleep(2.0 if kind == "server" else 0.0)
        engine.sample(request)
    assert time.monotonic() - start < 120
    assert "rollout.vllm" in str(caught.value)
