"""Bytes that last, by arithmetic, against those of real tensors on one rank and on two."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from transformers import DynamicCache, MistralConfig

from tests.plan.tiny import tiny_config
from tests.ranks import run_ranks
from wavalign_fast.config.schema import OptimizerConfig
from wavalign_fast.models.transformers_names import cache_argument
from wavalign_fast.plan import state
from wavalign_fast.plan.live_bytes import LiveBytes
from wavalign_fast.plan.planned_run import PlannedRun
from wavalign_fast.plan.training_peak import planned_model, sharded
from wavalign_fast.rollout.twin import Twin
from wavalign_fast.train.optimizer import build_optimizer
from wavalign_fast.train.policy import Policy

LORA = dict(lora_rank=4, lora_head=True)


def counted(tensors) -> int:
    """Bytes of tensors, of a DTensor those of this rank."""
    local = (getattr(tensor, "_local_tensor", tensor) for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def planned_run(dtype: torch.dtype, shards: int, optimizer: str, **lora) -> PlannedRun:
    return PlannedRun(
        shard=shards, weights_dtype=dtype, compute_dtype=dtype, optimizer=optimizer, **lora
    )


def actual(
    tied: bool, dtype: torch.dtype, shards: int, optimizer_name: str, lora: dict | None = None
) -> list[int]:
    """Bytes of weights, gradients and optimizer state of this rank after a step."""
    run = planned_run(dtype, shards, optimizer_name, **lora or {})
    model = planned_model(tiny_config(tie_word_embeddings=tied), run)
    policy = sharded(Policy(model), run)
    optimizer = build_optimizer(model, OptimizerConfig(name=optimizer_name))
    ids = torch.zeros((2, 5), dtype=torch.int64)
    policy([ids], lambda hidden, weight, _: (hidden @ weight.T).sum()).backward()
    gradients = counted(weight.grad for weight in model.parameters() if weight.grad is not None)
    optimizer.step()
    moments = [value for each in optimizer.state.values() for value in each.values()]
    return [counted(model.parameters()), gradients, counted(moments)]


def planned(
    tied: bool, dtype: torch.dtype, shards: int, optimizer_name: str, lora: dict | None = None
) -> list[int]:
    run = planned_run(dtype, shards, optimizer_name, **lora or {})
    with torch.device("meta"):
        model = planned_model(tiny_config(tie_word_embeddings=tied), run)
    every = (state.weight_bytes, state.gradient_bytes, state.moment_bytes)
    return [of(model, run) for of in every]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_one_rank_holds_what_is_planned(tied, dtype, optimizer):
    assert actual(tied, dtype, 1, optimizer) == planned(tied, dtype, 1, optimizer)


@pytest.mark.parametrize(("tied", "shards"), [(False, 1), (True, 1), (True, 2)])
def test_adapters_alone_have_gradients_and_moments_and_are_float32(tied, shards):
    pytest.importorskip("peft")
    sizes = (tied, torch.bfloat16, shards, "adamw", LORA)
    found = actual(*sizes) if shards == 1 else run_ranks(shards, actual, *sizes)[0]
    assert found == planned(*sizes)
    _, gradients, moments = found
    outputs = (32, 16, 16, 32, 80, 80)  # of the projections whose inputs are 32 wide
    layers = 3 * (sum(32 + size for size in outputs) + 80 + 32)
    assert shards > 1 or gradients == 4 * 4 * (layers + 32 + 501)
    assert moments >= 2 * gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_of_8_bits_are_those_of_torchao(dtype, monkeypatch):
    """Its matrices of 2560 elements and its norms are too small for 8 bits, the others are not."""
    pytest.importorskip("torchao")
    run = planned_run(dtype, 1, "adamw8bit")
    model = planned_model(tiny_config(hidden_size=64), run)
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw8bit"))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)  # which takes minutes
    optimizer.step()
    moments = [value for each in optimizer.state.values() for value in each.values()]
    held = [part for value in moments for part in flat(value)]
    assert counted(held) == state.moment_bytes(model, run)


def flat(tensor) -> list[torch.Tensor]:
    """The plain tensors of a tensor subclass."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in flat(getattr(tensor, name))]


@pytest.mark.parametrize(
    ("tied", "optimizer"), [(False, "adamw"), (True, "adamw"), (False, "muon")]
)
def test_a_rank_of_two_holds_what_is_planned(tied, optimizer):
    """501 rows do not divide by two: the first rank has one more."""
    first, second = run_ranks(2, actual, tied, torch.float32, 2, optimizer)
    assert first == planned(tied, torch.float32, 2, optimizer)
    assert first[0] > second[0]


def test_muon_works_on_a_whole_matrix():
    run = planned_run(torch.float32, 1, "muon")
    model = planned_model(tiny_config(hidden_size=64, intermediate_size=1024), run)
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = LiveBytes()
    moments = [value for each in optimizer.state.values() for value in each.values()]
    held.track([*model.parameters(), *(w.grad for w in model.parameters()), *moments])
    lasting = held.now
    with held:
        optimizer.step()
    assert held.peak - lasting == pytest.approx(state.update_bytes(model, run), rel=0.1)


def test_a_frozen_weight_has_no_gradient_and_no_moments():
    run = PlannedRun()
    model = planned_model(tiny_config(), run).requires_grad_(False)
    assert state.gradient_bytes(model, run) == state.moment_bytes(model, run) == 0
    model.model.norm.weight.requires_grad_(True)
    assert state.gradient_bytes(model, run) == 32 * 4


def test_a_reference_is_as_large_as_the_weights_of_a_rank():
    run = PlannedRun(shard=4)
    model = planned_model(tiny_config(), run)
    assert state.reference_bytes(model, run) == 0
    run = replace(run, reference=True)
    assert state.reference_bytes(model, run) == state.weight_bytes(model, run)
    half = replace(run, compute_dtype=torch.bfloat16)
    assert state.reference_bytes(model, half) == state.weight_bytes(model, run) / 2
    assert state.reference_bytes(model, replace(run, lora_rank=4)) == 0


@pytest.mark.parametrize("window", [None, 4])
def test_keys_and_values_are_those_of_a_cache(window):
    if window is None:
        config = tiny_config()
    else:
        sizes = {name: getattr(tiny_config(), name) for name in ("vocab_size", "hidden_size")}
        config = MistralConfig(
            **sizes, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=80, sliding_window=window,
        )  # fmt: skip
    run = PlannedRun(sampled=3, sampled_length=7)
    model = planned_model(config, run).eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros((3, 7), dtype=torch.int64), **cache_argument(model, cache))
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    wanted = counted(kept)
    if window is not None:  # transformers keeps one key less: the next one comes before it is used
        wanted = wanted * window // (window - 1)
    assert state.cache_bytes(model.config, run) == wanted


def test_a_copy_that_samples_is_whole():
    run = PlannedRun(sampled=1, sampling_dtype=torch.bfloat16)
    model = planned_model(tiny_config(), run)
    twin = Twin(model, torch.bfloat16)
    assert twin.is_copy
    assert state.twin_bytes(model, run) == counted(twin.model.parameters())
    sharded = replace(run, shard=2, sampling_dtype=torch.float32)
    assert state.twin_bytes(model, sharded) == counted(model.parameters())


def bytes_of_a_copy(tied: bool, weights: str, sampling: str | None) -> list[int]:
    """Of a run with adapters: what the copy that samples takes on this rank, and its dtypes."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    run = planned_run(getattr(torch, weights), ranks, "adamw", sampled=1, **LORA)
    policy = sharded(Policy(planned_model(tiny_config(tie_word_embeddings=tied), run)), run)
    twin = Twin(policy.model, getattr(torch, sampling or "", None), root=policy)
    twin.refresh()
    with torch.no_grad():
        twin.model(torch.zeros((1, 3), dtype=torch.int64))
    return [twin.is_copy, counted(twin.model.parameters())]


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_are_merged_in_a_copy_that_samples(tied):
    """Of bfloat16 weights the copy of two ranks is bfloat16, whatever the adapters are."""
    pytest.importorskip("peft")

    def wanted(weights: torch.dtype, shards: int) -> list[int]:
        run = planned_run(
            weights, shards, "adamw", sampled=1, sampling_dtype=torch.bfloat16, **LORA
        )
        with torch.device("meta"):
            model = planned_model(tiny_config(tie_word_embeddings=tied), run)
        assert run.samples_a_copy
        return [True, state.twin_bytes(model, run)]

    assert bytes_of_a_copy(tied, "float32", "bfloat16") == wanted(torch.float32, 1)
    for found in run_ranks(2, bytes_of_a_copy, tied, "bfloat16", None):
        assert found == wanted(torch.bfloat16, 2)


def test_no_copy_samples_where_the_weights_are_whole():
    run = PlannedRun(sampled=1, replicate=2)
    model = planned_model(tiny_config(), run)
    assert not Twin(model, torch.float32).is_copy
    assert state.twin_bytes(model, run) == 0
    assert state.twin_bytes(model, replace(run, shard=2, sampled=0)) == 0


def test_a_decoding_step_holds_logits_and_probabilities():
    run = PlannedRun(sampled=3, sampling_dtype=torch.bfloat16)
    assert state.decode_bytes(501, run) == 3 * 501 * (2 + 4 + 4)
