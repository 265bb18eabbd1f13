"""The copy that samples: its weights, their storage, and the collectives that fill it."""

import copy
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.ranks import run_ranks
from wavalign_fast.errors import UserError
from wavalign_fast.models.head import output_head
from wavalign_fast.rollout import Twin, sample_completions, weights

PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]


def tiny(*, tied: bool = False, seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=37,  # does not divide by the ranks
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,
        tie_word_embeddings=tied,
    )
    return Qwen2ForCausalLM(config)


def completions(model) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    options = {"group_size": 2, "max_new_tokens": 8, "eos_id": 1, "pad_id": 0}
    return sample_completions(model, PROMPTS, generator=generator, **options)


def test_a_whole_model_of_the_right_dtype_samples_itself():
    for dtype in (None, torch.float32):
        model = tiny()
        twin = Twin(model, dtype)
        twin.refresh()
        assert twin.model is model and not twin.is_copy


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_has_the_weights_of_now_in_the_same_storage(tied):
    model = tiny(tied=tied)
    twin = Twin(model, torch.bfloat16, keep=True)
    assert twin.is_copy and not twin.model.training
    twin.refresh()
    places = {name: it.data_ptr() for name, it in twin.model.named_parameters()}
    assert ("lm_head.weight" in places) is not tied
    for _ in range(2):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.25)
        twin.refresh()
        wanted = {name: it.bfloat16() for name, it in model.named_parameters()}
        found = dict(twin.model.named_parameters())
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert {name: it.data_ptr() for name, it in found.items()} == places
        twin.release()
    assert not any(it.requires_grad for it in twin.model.parameters())
    frequencies = twin.model.model.rotary_emb.inv_freq
    assert torch.equal(frequencies, model.model.rotary_emb.inv_freq), "float32, not rounded"
    half = copy.deepcopy(model).bfloat16()
    half.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    assert completions(twin.model) == completions(half)


def adapted(model, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, **options)
    torch.manual_seed(1)
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def test_adapters_are_merged_into_the_copy_and_frozen_weights_sent_once(monkeypatch):
    model = adapted(tiny(), target_modules=["q_proj", "down_proj", "lm_head"])
    assert not Twin(model).is_copy
    assert completions(Twin(model).model) == completions(model)
    twin = Twin(model, torch.float64)
    sent = []
    whole_tensors = weights.whole_tensors

    def counted(parts, dtypes):
        sent.append(len(parts))
        return whole_tensors(parts, dtypes)

    monkeypatch.setattr("wavalign_fast.rollout.twin.whole_tensors", counted)
    ids = torch.tensor([PROMPTS[0]])
    for _ in range(2):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.mul_(1.5)
        twin.refresh()
        with torch.no_grad():
            wanted, found = model(ids).logits, twin.model(ids).logits
        torch.testing.assert_close(found.float(), wanted, atol=2e-5, rtol=1e-4)
    adapted_layers = 2 * 2 + 1
    assert sent == [len(list(twin.model.parameters())), adapted_layers]


def memory_of(model) -> list[weakref.ref]:
    """The storages of the weights, as long as anything holds them."""
    return [weakref.ref(it.untyped_storage()) for it in model.parameters() if not it.is_meta]


@pytest.mark.parametrize("tied", [False, True])
def test_a_released_copy_has_no_memory_and_samples_the_same_after_a_refresh(tied):
    model = tiny(tied=tied)
    copies = [Twin(model, torch.bfloat16, keep=keep) for keep in (False, True)]
    for step in range(2):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + step)
        sampled = []
        for twin in copies:
            assert bool(memory_of(twin.model)) is (twin.keep and step > 0)
            twin.refresh()
            held = memory_of(twin.model)
            assert len(held) == len(list(model.parameters()))
            sampled.append(completions(twin.model))
            twin.release()
            assert all((it() is not None) is twin.keep for it in held)
        assert sampled[0] == sampled[1]


def test_a_released_copy_cannot_sample():
    twin = Twin(tiny(), torch.bfloat16)
    for _ in range(2):  # before the first refresh, and after a release
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            completions(twin.model)
        twin.refresh()
        completions(twin.model)
        twin.release()


def test_a_released_copy_gets_its_frozen_weights_again():
    model = tiny()
    model.requires_grad_(False)
    twin = Twin(model, torch.float64)
    for _ in range(2):
        twin.refresh()
        own = dict(twin.model.named_parameters())
        assert all(torch.equal(own[name], it.double()) for name, it in model.named_parameters())
        twin.release()


def test_releasing_leaves_a_policy_that_samples_itself_alone():
    model = tiny()
    Twin(model).release()
    assert not any(it.is_meta for it in model.parameters())


def test_adapters_that_cannot_be_merged_are_refused():
    model = adapted(tiny(), target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(UserError, match=r"copy of PeftModel.*model.embed_tokens.weight was not"):
        Twin(model, torch.bfloat16)


def test_a_tied_head_with_an_adapter_is_untied_in_the_copy():
    model = adapted(tiny(tied=True), target_modules=["lm_head"])
    twin = Twin(model, torch.float64)
    twin.refresh()
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        torch.testing.assert_close(twin.model(ids).logits.float(), model(ids).logits)


class Policy(nn.Module):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits


class Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def sharded(model, shape, compute=None) -> Policy:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    policy = Policy(model)
    options = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(param_dtype=compute)}
    for layer in model.model.layers:
        fully_shard(layer, **options)
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False, **options)
    fully_shard(policy, **options)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return policy


def refreshed_on_ranks(shape, lora: bool, tied: bool) -> dict:
    torch.set_num_threads(1)
    plain = tiny(tied=tied)
    if lora:
        plain = adapted(plain, target_modules=["q_proj", "down_proj"]).base_model.model
    policy = sharded(copy.deepcopy(plain), shape)
    twin = Twin(policy.model, root=policy)
    ids = torch.tensor([PROMPTS[0]])
    policy(ids)  # leaves the head's unit and the root whole
    found = {}
    for step in range(2):
        with Collectives() as collectives:
            twin.refresh()
        want = weights.merged_weights(plain)
        own = dict(twin.model.named_parameters())
        assert all(torch.allclose(own[name], want[name], atol=1e-6) for name in own), step
        found[f"collectives {step}"] = len(collectives.seen)
        found[f"ids {step}"] = completions(twin.model)
        assert found[f"ids {step}"] == completions(plain)
        # Training goes on as if nothing had been sampled.
        shares = {policy: policy(ids) / dist.get_world_size() ** 0.5, plain: plain(ids).logits}
        for side, logits in shares.items():
            logits.square().sum().backward()
            torch.optim.SGD(side.parameters(), lr=1e-3).step()
            side.zero_grad()
    assert found["ids 0"] != found["ids 1"], "the step changed nothing: the case tests nothing"
    return found


@pytest.mark.parametrize(
    ("shape", "lora", "tied"),
    [((1, 2), False, False), ((2, 1), False, True), ((1, 2), True, False)],
)
def test_sharded_weights_are_gathered_in_one_collective(shape, lora, tied):
    both = run_ranks(2, refreshed_on_ranks, shape, lora, tied)
    assert both[0] == both[1]
    if not lora:
        assert both[0]["collectives 0"] == both[0]["collectives 1"] == 1
    else:  # merging gathers the small factors of each layer
        assert both[0]["collectives 1"] <= both[0]["collectives 0"] <= 1 + 2 * 4


def buckets_on_ranks() -> list[int]:
    mesh = init_device_mesh("cpu", (2,))
    policy = Policy(tiny())
    fully_shard(policy, mesh=mesh)
    twin = Twin(policy.model, torch.bfloat16, root=policy)
    counts = []
    for size in (2**20, 1500, 1):
        weights.BUCKET_BYTES = size
        for weight in twin.model.parameters():
            weight.zero_()
        with Collectives() as collectives:
            twin.refresh()
        own = dict(twin.model.named_parameters())
        assert all(torch.equal(own[name], it.bfloat16()) for name, it in tiny().named_parameters())
        counts.append(len(collectives.seen))
    return counts


def test_a_bucket_bounds_what_travels_at_once():
    counts = run_ranks(2, buckets_on_ranks)[0]
    assert counts[0] == 1 and 1 < counts[1] < counts[2] == len(list(tiny().parameters()))


def test_the_head_of_a_copy_takes_the_fused_losses():
    twin = Twin(tiny(), torch.bfloat16)
    twin.refresh()
    assert output_head(twin.model).weight.dtype == torch.bfloat16
