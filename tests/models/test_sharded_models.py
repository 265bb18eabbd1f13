"""``output_head`` of a model that FSDP2 has sharded over two ranks."""

import pytest
import torch
from torch import nn

import wavalign_fast as wf
from tests.ranks import run_ranks

V, H = 24, 16
IDS = torch.tensor([[1, 13, 2, 5]])


class Policy(nn.Module):
    """The root: what is called inside its forward finds whole parameters."""

    def __init__(self, *, lora: bool) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=V, hidden_size=H, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
        )  # fmt: skip
        model = Qwen2ForCausalLM(config)
        if lora:
            import peft

            config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
            model = peft.get_peft_model(model, config).get_base_model()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.model.model(input_ids=ids).last_hidden_state
        weight, bias, _ = wf.output_head(self.model)
        return nn.functional.linear(hidden, weight, bias)


def logits_of(units: str, lora: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the sharded model by way of ``output_head``, and those of the whole model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    whole, policy = Policy(lora=lora), Policy(lora=lora)
    head = policy.model.get_output_embeddings()
    if units == "with the norm":
        fully_shard([policy.model.model.norm, head], mesh=mesh)
    fully_shard(policy, mesh=mesh)
    return policy(IDS).detach(), whole.model(input_ids=IDS).logits.detach()


def kind_of_lone_weight() -> str:
    """What a head in a unit of its own gives, whose forward nothing has called."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    head = nn.Linear(H, V)
    fully_shard(head, mesh=init_device_mesh("cpu", (2,)))
    return type(wf.output_head(head).weight).__name__


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("units", ["in the root", "with the norm"])
def test_the_head_is_whole_inside_the_root(units: str, lora: bool) -> None:
    if lora:
        pytest.importorskip("peft")
    import torch.distributed.fsdp  # (before the fork, so that no rank imports it again)
    import transformers.models.qwen2  # noqa: F401

    for got, want in run_ranks(2, logits_of, units, lora):
        torch.testing.assert_close(got, want)


def test_a_head_of_its_own_stays_sharded_until_it_is_called() -> None:
    assert run_ranks(2, kind_of_lone_weight) == ["DTensor"] * 2
