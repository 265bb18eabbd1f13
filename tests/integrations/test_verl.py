"""verl's FSDP engine with our head in it, and our policy loss: ``make test-verl``.

The engine itself runs over gloo, initialised from a model directory. verl replaces the forward of a
model's class for good, so each engine has processes of its own.
"""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.ranks import run_ranks
from wavalign_fast.errors import UserError

pytest.importorskip("verl", reason="verl is not installed: make test-verl")
importlib.import_module("tests.integrations.verl_cpu")
runs = importlib.import_module("tests.integrations.verl_runs")
adapter = importlib.import_module("wavalign_fast.integrations.verl")
core_algos = importlib.import_module("verl.trainer.ppo.core_algos")
SIZES = dict(
    vocab_size=runs.VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model_directory(request, tmp_path_factory):
    """verl makes an untied head an FSDP2 unit of its own; a tied one belongs to the root."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=request.param))
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # probabilities far from uniform
    directory = tmp_path_factory.mktemp("model")
    model.save_pretrained(directory)
    return directory


def test_updates_are_those_of_full_logits_on_one_rank_and_on_two(model_directory):
    (wanted,) = run_ranks(1, runs.trained, model_directory, "logits")
    found = {
        "verl, fused": run_ranks(1, runs.trained, model_directory, "verl"),
        "ours": run_ranks(1, runs.trained, model_directory, "ours"),
        "ours, 2 ranks": run_ranks(2, runs.trained, model_directory, "ours"),
    }
    for side, ranks in found.items():
        losses = sum(losses for losses, _, _ in ranks) / len(ranks)
        torch.testing.assert_close(losses, wanted[0], rtol=1e-5, atol=1e-6, msg=side)
        torch.testing.assert_close(ranks[0][1], wanted[1], rtol=1e-5, atol=0, msg=side)
        assert float((ranks[0][2] - wanted[2]).norm() / wanted[2].norm()) < 1e-5, side


def test_only_responses_are_scored():
    data = runs.batch(range(runs.ROWS), 0, fused=True)
    labels = adapter.response_labels(data)
    scored = labels != -100
    assert int(scored.sum()) == sum(runs.RESPONSES) < len(labels)
    assert torch.equal(labels[scored], data["responses"].values())
    position = torch.arange(len(labels))[scored]
    assert torch.equal(data["input_ids"].values()[position + 1], labels[scored])


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (PhiForCausalLM(PhiConfig(**SIZES)), "want nn.Linear without bias"),
        (CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)), "a factor of 0.25, want 1"),
        (Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)), "a soft cap of 30.0, want none"),
    ],
    ids=["bias", "scale", "soft cap"],
)
def test_a_head_that_verl_would_misread_is_refused(model, named):
    with pytest.raises(UserError, match=named):
        adapter.check_head(model)


def initialised(directory):
    """What an engine says to an adapter on the head."""
    adapted = {"lora_rank": 2, "target_modules": ["lm_head"]}
    engine = runs.engine_of(adapter.FusedFSDPEngine, directory, fused=True, **adapted)
    with pytest.raises(UserError) as refusal:
        engine.initialize()
    return str(refusal.value)


def test_an_adapter_on_the_head_is_refused_when_the_engine_starts(model_directory):
    assert "want nn.Linear without bias" in run_ranks(1, initialised, model_directory)[0]


def test_the_engine_is_the_one_that_verl_takes(monkeypatch):
    from verl.workers.engine import EngineRegistry

    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    for backend in ("fsdp", "fsdp2"):
        kind = EngineRegistry.get_engine_cls("language_model", backend)
        assert kind is adapter.FusedFSDPEngine
    with pytest.raises(UserError, match="impl_backend: got 'liger', want 'torch'"):
        adapter.FusedLinearForPPO(impl_backend="liger")


def losses_of(name, log_prob, old, advantages, mask, mode):
    config = SimpleNamespace(
        clip_ratio=0.2, clip_ratio_low=None, clip_ratio_high=0.3, global_batch_info={},
        get=lambda key, default: default,
    )  # fmt: skip
    loss, metrics = core_algos.get_policy_loss_fn(name)(
        old_log_prob=old, log_prob=log_prob, advantages=advantages, response_mask=mask,
        loss_agg_mode=mode, config=config, rollout_is_weights=None,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, log_prob)
    return loss, gradient, metrics


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_the_policy_loss_is_verls_within_its_bounds(mode):
    generator = torch.Generator().manual_seed(0)
    log_prob = -torch.rand(4, 6, generator=generator).requires_grad_()
    old = log_prob.detach() + 0.4 * torch.randn(4, 6, generator=generator)
    advantages = torch.randn(4, 1, generator=generator).expand(4, 6)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [4]])
    found = losses_of("wavalign", log_prob, old, advantages, mask, mode)
    wanted = losses_of("vanilla", log_prob, old, advantages, mask, mode)
    torch.testing.assert_close(found[:2], wanted[:2], rtol=1e-6, atol=1e-7)
    for name, value in found[2].items():
        assert value == pytest.approx(wanted[2][name], rel=1e-5)
    assert 0.1 < found[2]["actor/pg_clipfrac"] < 0.9
    far = torch.full_like(old, -31.0)  # beyond 20 nats verl's gradient is lost
    beyond = losses_of("wavalign", log_prob, far, -advantages.abs(), mask, mode)[1]
    assert (beyond[mask] > 0).all() and (beyond[~mask] == 0).all()


def test_the_settings_of_the_page_are_verls():
    """Those of docs/verl.md, put on verl's own configuration by its own reader."""
    from hydra import compose, initialize_config_module

    page = (Path(__file__).parents[2] / "docs" / "verl.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with initialize_config_module("verl.trainer.config", version_base=None):
        settings = compose("ppo_trainer", overrides=block.split())
    model = settings.actor_rollout_ref.model
    assert model.use_fused_kernels
    adapter.FusedLinearForPPO(**model.fused_kernel_options)
    assert importlib.import_module(model.external_lib) is adapter
    loss_mode = settings.actor_rollout_ref.actor.policy_loss.loss_mode
    assert core_algos.get_policy_loss_fn(loss_mode) is adapter.policy_loss
