"""``model.kernels``: a run by liger-kernel, through wrappers, adapters, a resume and a checkpoint.

A stand-in in plain torch takes the place of the package; its Triton kernels are in tests/gpu.
"""

import pytest
import torch
import torch.distributed as dist

from tests.models.bodies import body_of, largest_error
from tests.models.liger_stand_in import stand_in
from tests.models.tiny import gradients, rows_of
from tests.ranks import run_ranks
from wavalign_fast.config.model import LoraConfig, ModelConfig
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.errors import UserError
from wavalign_fast.models import liger
from wavalign_fast.ops import linear_logprob
from wavalign_fast.train.model_setup import prepare_model, set_kernels
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.run_directory import read_run_config

LIGER = "model.kernels=liger"


def summed_gradients(config: ModelConfig):
    """The gradients of two rows, one of each rank if there are two, and the calls of kernels."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    with pytest.MonkeyPatch.context() as patch:
        calls = stand_in(patch)
        model = body_of("qwen3")
        set_kernels(model, config)
        prepare_model(model, config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # 0 at first, and then A has no gradient
                torch.nn.init.constant_(weight, 0.1)
        policy = wrapped(Policy(model), ParallelConfig(), ranks)
        for row in rows_of(9, 5)[ranks.rank :: ranks.world]:

            def score(hidden, weight, bias, row=row):
                return linear_logprob(hidden, weight, row.roll(-1)).logp.sum()

            policy([row[None]], score).backward()
    whole = {
        name: gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        for name, gradient in gradients(policy).items()
    }
    return whole, dict(calls)


@pytest.mark.parametrize("kind", ["checkpointed", "adapters"])
def test_two_ranks_have_the_gradients_of_plain_torch(kind):
    keys: dict = {"activation_checkpointing": True}
    if kind == "adapters":
        pytest.importorskip("peft")
        keys = {"lora": LoraConfig(rank=2, head=True)}
    wanted, calls = summed_gradients(ModelConfig(**keys))
    assert not calls
    for found, calls in run_ranks(2, summed_gradients, ModelConfig(kernels="liger", **keys)):
        # A checkpointed layer runs again in the backward pass.
        assert calls["swiglu"] == (4 if kind == "checkpointed" else 2)
        assert largest_error(found, wanted) < 1e-5


@pytest.mark.usefixtures("toy_recipe")
def test_a_run_by_the_kernels_can_be_continued_without_them(
    in_tmp_path, train_toy, capsys, monkeypatch, no_report
):
    assert train_toy("--name", "plain") == 0
    calls = stand_in(monkeypatch)
    assert train_toy("--name", "one", LIGER, "train.steps=2") == 0
    assert calls["rope"] > 0
    calls.clear()
    capsys.readouterr()
    assert train_toy("--name", "one", "--resume") == 0
    assert "model.kernels: 'liger' before, 'torch' now" in capsys.readouterr().out
    assert not calls
    run = in_tmp_path / "runs" / "one"
    assert read_run_config(run).model.kernels == "torch"
    weights = "checkpoint/model.safetensors"
    assert (run / weights).read_bytes() == (in_tmp_path / "runs/plain" / weights).read_bytes()


@pytest.mark.usefixtures("toy_recipe")
def test_kernels_that_cannot_be_used_are_named_before_the_base_is_evaluated(
    in_tmp_path, refused, monkeypatch, toy_task
):
    stand_in(monkeypatch)
    monkeypatch.setattr(liger, "backend_status", lambda: {"triton": "there is no GPU"})
    monkeypatch.setattr(toy_task, "load_model", lambda self: pytest.fail("the base was loaded"))
    line = refused("--name", "one", LIGER)
    assert "model.kernels: 'liger' cannot be used here: its kernels are Triton's, and there" in line


def test_kernels_and_compiled_layers_exclude_each_other():
    with pytest.raises(ValueError, match="kernels liger given with compile true, wanted one of"):
        ModelConfig(kernels="liger", compile=True)


def test_a_model_that_does_not_fit_is_named(monkeypatch):
    stand_in(monkeypatch)
    model = body_of("qwen2", hidden_act="relu")
    with pytest.raises(UserError, match=r"model\.kernels: 'liger' given .* hidden_act 'relu'"):
        set_kernels(model, ModelConfig(kernels="liger"))
