"""Updates by verl's FSDP engine with verl's PPO loss, on ranks of the CPU."""

import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils
from verl.workers.config import (
    ActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    PolicyLossConfig,
)
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

from wavalign_fast.integrations import verl as adapter

VOCAB, UPDATES = 100, 3
PROMPTS, RESPONSES = (3, 6, 2, 5, 4, 2, 3, 7), (9, 4, 7, 1, 2, 8, 1, 3)
ROWS = len(PROMPTS)
FLOAT32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


def batch(rows, update, *, fused):
    """What verl's trainer hands to an engine: rows of several lengths, nested."""
    generator = torch.Generator().manual_seed(update)
    lengths = list(zip(PROMPTS, RESPONSES, strict=True))
    ids = [torch.randint(2, VOCAB, (p + r,), generator=generator) for p, r in lengths]
    old = [-3 + 2 * torch.rand(r, generator=generator) for r in RESPONSES]
    advantages = [torch.randn(1, generator=generator).repeat(r) for r in RESPONSES]
    mask = [(torch.arange(r) != 1).long() for r in RESPONSES]  # the second is a tool's token
    columns = {
        "input_ids": ids,
        "position_ids": [torch.arange(len(row)) for row in ids],
        "prompts": [row[:p] for row, p in zip(ids, PROMPTS, strict=True)],
        "responses": [row[p:] for row, p in zip(ids, PROMPTS, strict=True)],
        "response_mask": mask,
        "loss_mask": mask,
        "old_log_probs": old,
        "advantages": advantages,
    }
    nested = {
        name: torch.nested.as_nested_tensor([values[row] for row in rows], layout=torch.jagged)
        for name, values in columns.items()
    }
    data = TensorDict(nested, batch_size=[len(rows)])
    settings = dict(
        use_remove_padding=False, use_fused_kernels=fused, calculate_entropy=True, temperature=0.8,
        global_batch_size=ROWS, use_dynamic_bsz=False, micro_batch_size_per_gpu=len(rows) // 2,
    )  # fmt: skip
    for name, value in settings.items():
        tensordict_utils.assign_non_tensor_data(data, name, value)
    return data


def engine_of(kind, directory, *, fused, lora_rank=0, target_modules="all-linear"):
    return kind(
        model_config=HFModelConfig(
            path=str(directory), load_tokenizer=False, use_remove_padding=False,
            override_config={"attn_implementation": "eager"}, enable_gradient_checkpointing=False,
            use_fused_kernels=fused, fused_kernel_options={"impl_backend": "torch"},
            lora_rank=lora_rank, target_modules=target_modules,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", use_torch_compile=False, mixed_precision=FLOAT32
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=UPDATES),
        checkpoint_config=CheckpointConfig(),
    )  # fmt: skip


def trained(directory, side, loss_mode="vanilla", lora_rank=0):
    """(losses, gradient norms, weights) of updates of two micro-batches on each rank."""
    torch.manual_seed(0)
    kind = adapter.FusedFSDPEngine if side == "ours" else FSDPEngineWithLMHead
    engine = engine_of(kind, directory, fused=side != "logits", lora_rank=lora_rank)
    engine.initialize()
    actor = ActorConfig(
        strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=2, ppo_mini_batch_size=ROWS,
        entropy_coeff=0.01, loss_agg_mode="token-mean", use_kl_loss=False,
        policy_loss=PolicyLossConfig(loss_mode=loss_mode),
    )  # fmt: skip
    rows = list(range(torch.distributed.get_rank(), ROWS, torch.distributed.get_world_size()))
    losses, norms = [], []
    with engine.train_mode():
        for update in range(UPDATES):
            data = batch(rows, update, fused=side != "logits")
            output = engine.train_batch(data, lambda **given: ppo_loss(config=actor, **given))
            losses.append(sum(output["loss"]))
            norms.append(float(output["metrics"]["grad_norm"]))
    weights = [weight.full_tensor().double().flatten() for weight in engine.module.parameters()]
    return torch.tensor(losses), torch.tensor(norms), torch.cat(weights).detach()
