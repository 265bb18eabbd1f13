"""The decode of fixed shapes against transformers' growing cache, and what it asks of the host."""

import gc
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from wavalign_fast.errors import UserError
from wavalign_fast.models.attention import set_attention
from wavalign_fast.rollout import Twin, choice, cuda_graphs, sample_with_logps, static_decode
from wavalign_fast.rollout.lean_decode import LeanDecode
from wavalign_fast.rollout.prefill import prefill
from wavalign_fast.rollout.settings import Settings

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [4] * 9]
ENDS = frozenset([1, 2, 3, 14, 15])
TOKENS, GROUP = 20, 3
DRAWS = torch.rand(12, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 41,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 41, "n_embd": 24, "n_layer": 2, "n_head": 6, "n_positions": 64}
GPT2 |= {"initializer_range": 0.3}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def build(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


def qwen2():
    return build(Qwen2ForCausalLM, Qwen2Config(**SIZES))


MODELS = {
    "qwen2": qwen2,
    "llama": lambda: build(LlamaForCausalLM, LlamaConfig(**SIZES)),
    "gpt2": lambda: build(GPT2LMHeadModel, GPT2Config(**GPT2)),
    # So that blocks of the vocabulary are used.
    "large vocabulary": lambda: build(
        Qwen2ForCausalLM, Qwen2Config(**SIZES | {"vocab_size": 2100})
    ),
}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """Decodes here on the CPU, too; what is not made for it takes transformers' cache."""
    monkeypatch.setattr(static_decode, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(LeanDecode, "of", lambda *_: None)


def sample(model, prompts=PROMPTS, **options):
    defaults = {"max_new_tokens": TOKENS, "eos_id": ENDS, "pad_id": 0, "group_size": GROUP}
    return sample_with_logps(model, prompts, **defaults | options)


def plain(model, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(static_decode, "DEVICES", ())
        return sample(model, **options)


def decode_of(model):
    with torch.inference_mode():
        settings = Settings(GROUP, TOKENS, ENDS, 1.0)
        return static_decode.static_decode(model, prefill(model, PROMPTS, 0), settings)


def assert_same(found, wanted):
    assert found.ids == wanted.ids
    for one, other in zip(found.logps, wanted.logps, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_completions_are_those_of_a_growing_cache(name, monkeypatch):
    model = MODELS[name]()
    assert decode_of(model) is not None
    for options in ({"temperature": 0.0}, {"draws": DRAWS}, {"draws": DRAWS, "temperature": 0.8}):
        wanted = plain(model, monkeypatch, **options)
        assert_same(sample(model, **options), wanted)
        if options.get("temperature") != 0.0 and name != "large vocabulary":
            assert len({len(ids) for ids in wanted.ids}) > 2, "rows end together"


def test_a_generator_gives_what_it_gives_elsewhere(monkeypatch):
    model = qwen2()
    wanted = plain(model, monkeypatch, generator=torch.Generator().manual_seed(5))
    assert_same(sample(model, generator=torch.Generator().manual_seed(5)), wanted)


def test_varlen_attention_and_one_token(monkeypatch):
    model = qwen2()
    set_attention(model, "varlen")
    assert decode_of(model) is not None
    assert_same(sample(model, draws=DRAWS), plain(model, monkeypatch, draws=DRAWS))
    one = {"max_new_tokens": 1, "draws": DRAWS[:, :1]}
    assert_same(sample(model, **one), plain(model, monkeypatch, **one))


WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
WAITS |= {"lift_fresh", "scalar_tensor"}


class HostReads(TorchDispatchMode):
    """Counts what waits for a device, or would copy a number of the host to it."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen = []
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self.noted(name, getattr(torch.Tensor, name)))

    def noted(self, name, method):
        def read(*args, **options):
            self.seen.append(name)
            return method(*args, **options)

        return read

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS or (name == "where" and func._overloadname.startswith("Scalar")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_host_asks_once_in_some_tokens(name, temperature, monkeypatch):
    model = MODELS[name]()
    draws = DRAWS if temperature else None
    monkeypatch.setattr(choice, "kernels_take", lambda logits: False)  # what a GPU runs
    with torch.inference_mode():
        settings = Settings(GROUP, TOKENS, frozenset(), temperature)
        prefix = prefill(model, PROMPTS, 0)
        decode = static_decode.static_decode(model, prefix, settings)
        with monkeypatch.context() as patch, HostReads(patch) as reads:
            decode(model, prefix, draws)
    assert reads.seen == ["tolist"] * math.ceil(TOKENS / static_decode.CHECK_EVERY)


def test_it_stops_at_the_question_after_the_last_end(monkeypatch):
    model, many = qwen2(), range(1, 10)
    wanted = plain(model, monkeypatch, draws=DRAWS, eos_id=many)
    longest = max(map(len, wanted.ids))
    assert 2 < longest < TOKENS - 2
    fed = []
    forward = model.forward
    monkeypatch.setattr(static_decode, "CHECK_EVERY", 2)
    monkeypatch.setattr(model, "forward", lambda *a, **k: fed.append(1) or forward(*a, **k))
    assert_same(sample(model, draws=DRAWS, eos_id=many), wanted)
    prefills = 1
    assert longest - 1 <= len(fed) - prefills <= longest


def spoil_on(monkeypatch, at, value, row=1):
    """Spoils a logit of the rows from ``row`` on, from token ``at`` on."""
    choose = static_decode.StaticDecode._choose

    def spoilt(self, logits):
        logits = logits.clone()
        if int(self.step) >= at:
            logits[row:, 3] = value
        choose(self, logits)

    monkeypatch.setattr(static_decode.StaticDecode, "_choose", spoilt)


@pytest.mark.parametrize(("value", "seen"), [(math.nan, "1 NaN, 0 inf"), (math.inf, "0 NaN, 1")])
@pytest.mark.parametrize("at", [0, 9, TOKENS - 1])
def test_logits_that_are_not_finite_are_named(at, value, seen, monkeypatch):
    spoil_on(monkeypatch, at, value, row=4)
    with pytest.raises(UserError, match=rf"completion 4 \(of prompt 1\), token {at}: .*{seen}"):
        sample(qwen2(), eos_id=None, draws=DRAWS)


def test_what_a_row_computes_after_its_end_is_no_error_and_is_forgotten(monkeypatch):
    model = qwen2()
    wanted = plain(model, monkeypatch, draws=DRAWS)
    ended = [row for row, ids in enumerate(wanted.ids) if len(ids) < 6]
    assert ended and max(map(len, wanted.ids)) > 8
    choose = static_decode.StaticDecode._choose

    def spoilt(self, logits):
        if int(self.step) >= 6:
            logits = logits.clone()
            logits[ended] = math.nan
            for layer in self.cache.layers:  # as a NaN of the layers would leave it
                layer.keys[ended], layer.values[ended] = math.nan, math.nan
        choose(self, logits)

    with monkeypatch.context() as patch:
        patch.setattr(static_decode.StaticDecode, "_choose", spoilt)
        assert sample(model, draws=DRAWS).ids == wanted.ids
    kept = static_decode._kept[model].decode
    assert kept.cache.layers[0].keys.isnan().any()
    assert_same(sample(model, draws=DRAWS), wanted)
    assert static_decode._kept[model].decode is kept


@pytest.fixture
def captures(monkeypatch):
    """Graphs pretended on the CPU: repeating one runs the captured step, and no other."""
    counts = {"captured": 0, "repeated": 0, "aside": 0}

    def aside(step):
        counts["aside"] += 1
        step()

    def capture(step):
        counts["captured"] += 1

        def replay():
            counts["repeated"] += 1
            step()

        return replay

    monkeypatch.setattr(static_decode, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(cuda_graphs, "run_aside", aside)
    monkeypatch.setattr(cuda_graphs, "capture", capture)
    return counts


def test_a_graph_is_captured_once_for_weights_that_stay_where_they_are(captures, monkeypatch):
    source = qwen2()
    twin = Twin(source, torch.float64)
    for turn in range(2):
        with torch.no_grad():
            for weight in source.parameters():
                weight.mul_(1.1)
        twin.refresh()
        wanted = plain(twin.model, monkeypatch, draws=DRAWS, eos_id=None)
        assert_same(sample(twin.model, draws=DRAWS, eos_id=None), wanted)
        steps = (turn + 1) * (TOKENS - 1) - static_decode.WARM_UP_STEPS
        assert captures == {"captured": 1, "repeated": steps, "aside": static_decode.WARM_UP_STEPS}
    sample(twin.model, [[7] * 8], draws=DRAWS[:3], eos_id=None)
    assert captures["captured"] == 2, "another number of rows"
    for weight in twin.model.parameters():
        weight.data = weight.data.clone()
    sample(twin.model, [[7] * 8], draws=DRAWS[:3], eos_id=None)
    assert captures["captured"] == 3, "the weights have moved"
    static_decode.release(twin.model)
    sample(twin.model, [[7] * 8], draws=DRAWS[:3], eos_id=None)
    assert captures["captured"] == 4, "the graph was freed"


def test_a_copy_without_memory_keeps_no_cache_and_no_graph(captures):
    for keep in (True, False):
        twin = Twin(qwen2(), torch.float64, keep=keep)
        twin.refresh()
        sample(twin.model, draws=DRAWS)
        twin.release()
        assert (twin.model in static_decode._kept) is keep


def test_a_cache_that_training_needs_the_memory_of_is_freed(captures, monkeypatch):
    model = qwen2()
    columns = static_decode.COLUMNS
    size = 2 * 2 * 12 * 2 * columns * 4 * 4  # keys and values, layers, rows, heads, float32
    for kept, captured in ((size, 1), (size - 1, 3)):
        monkeypatch.setattr(static_decode, "KEPT_BYTES", kept)
        for _ in range(2):
            sample(model, draws=DRAWS)
        assert captures["captured"] == captured
        static_decode.release(model)


def test_without_a_graph_it_decodes_step_by_step(captures, monkeypatch):
    def refuse(step):
        captures["captured"] += 1
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(cuda_graphs, "capture", refuse)
    model = qwen2()
    wanted = plain(model, monkeypatch, draws=DRAWS)
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        assert_same(sample(model, draws=DRAWS), wanted)
    assert_same(sample(model, draws=DRAWS), wanted)
    assert captures["captured"] == 1, "it is not tried again"


def test_a_model_is_not_kept_alive(captures, monkeypatch):
    model = qwen2()
    static_decode._kept.clear()
    # A real graph holds no Python objects; the pretended one holds its step.
    monkeypatch.setattr(cuda_graphs, "capture", lambda step: lambda: None)
    sample(model, draws=DRAWS)
    gone = weakref.ref(model)
    assert len(static_decode._kept) == 1
    del model
    gc.collect()
    assert gone() is None and not static_decode._kept


def hooked():
    model = qwen2()
    model.lm_head.register_forward_hook(lambda *_: None)
    return model


def uncompilable():
    model = qwen2()
    model._can_compile_fullgraph = False
    return model


LEFT = {
    "eager attention": lambda: build(
        LlamaForCausalLM, LlamaConfig(**SIZES, attn_implementation="eager")
    ),
    "sliding window": lambda: build(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=6)),
    "angles that depend on the length": lambda: build(
        LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=DYNAMIC)
    ),
    "hooks": hooked,
    "branches on tensors": uncompilable,
}


@pytest.mark.parametrize("name", LEFT)
def test_what_a_graph_would_get_wrong_takes_the_growing_cache(name, monkeypatch):
    model = LEFT[name]()
    assert decode_of(model) is None
    assert_same(sample(model, draws=DRAWS), plain(model, monkeypatch, draws=DRAWS))


def test_adapters_are_decoded_and_their_graph_is_not_kept(captures, monkeypatch):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(qwen2(), config)
    wanted = plain(model, monkeypatch, draws=DRAWS)
    assert_same(sample(model, draws=DRAWS), wanted)
    assert captures["captured"] == 1
    with model.disable_adapter():
        base = plain(model, monkeypatch, draws=DRAWS)
        assert base.ids != wanted.ids
        assert_same(sample(model, draws=DRAWS), base)
    assert captures["captured"] == 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_graphs_on_a_gpu_give_the_same_completions_and_outlive_a_refresh(name, monkeypatch):
    source = MODELS[name]().cuda()
    twin = Twin(source, torch.float64)
    captured = []
    capture = cuda_graphs.capture
    monkeypatch.setattr(cuda_graphs, "capture", lambda step: captured.append(1) or capture(step))
    for _ in range(3):
        with torch.no_grad():
            for weight in source.parameters():
                weight.mul_(1.1)
        twin.refresh()
        for options in ({"temperature": 0.0}, {"draws": DRAWS}):
            wanted = plain(twin.model, monkeypatch, **options)
            assert_same(sample(twin.model, **options), wanted)
    assert len(captured) == 6, "greedy and sampled in turn are two graphs"
    captured.clear()
    for _ in range(3):
        twin.refresh()
        sample(twin.model, draws=DRAWS)
    assert not captured
    assert static_decode._kept[twin.model].decode.replay is not None


@pytest.mark.gpu
def test_a_gpu_waits_for_the_host_at_the_questions_alone():
    model = qwen2().cuda()
    with torch.inference_mode():
        prefix = prefill(model, PROMPTS, 0)
        settings = Settings(GROUP, static_decode.CHECK_EVERY, frozenset(), 1.0)
        decode = static_decode.static_decode(model, prefix, settings)
        draws = DRAWS[:, : static_decode.CHECK_EVERY].cuda()
        decode(model, prefix, draws)
        decode._begin(prefix, draws)
        decode._choose(prefix.logits.repeat_interleave(GROUP, 0))
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode._advance(model)
        finally:
            torch.cuda.set_sync_debug_mode("default")
