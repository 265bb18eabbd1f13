"""Peak memory of a forward and backward pass, found by running it on fake tensors.

The model has its true size and goes through FSDP2 on a process group that only pretends, so nothing
is allocated and no weight is read. The fused loss is replaced by what it holds on a GPU, one buffer
after the other: its kernels have no fake form that shows their scratch memory.
"""

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools import fake_collectives  # noqa: F401  collectives of fake tensors

from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.errors import naming
from wavalign_fast.models import (
    add_lora,
    cast_weights,
    hidden_states,
    output_head,
    recompute_activations,
)
from wavalign_fast.ops.chunked.api import DEFAULT_MEMORY_BUDGET
from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS, ChunkOptions, chunks_of, pitch_of
from wavalign_fast.ops.chunked.gradients import DIRECT_FROM
from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.sharded.head import local_slice
from wavalign_fast.ops.sharded.steps import chunk_places
from wavalign_fast.plan.live_bytes import LiveBytes
from wavalign_fast.plan.planned_run import PlannedRun
from wavalign_fast.plan.pretended_ranks import pretended_ranks
from wavalign_fast.train.policy import Blocks, Policy, wrapped
from wavalign_fast.train.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def training_peak(config: Any, run: PlannedRun) -> int:
    """Returns the most bytes that weights, gradients and activations of rank 0 hold at once.

    Args:
        config: of a transformers causal LM.
    """
    with pretended_ranks(run.world):
        mode = FakeTensorMode()
        with mode:
            made = _Policy(planned_model(config, run))
        policy = sharded(made, run)  # its mesh is made of real tensors
        with mode:
            return peak_of(policy, run)


def peak_of(policy: Policy, run: PlannedRun) -> int:
    """Returns the most bytes that one forward and backward pass of ``policy`` holds."""
    ids = torch.zeros((run.rows, run.length), dtype=torch.int64)
    live = torch.arange(run.live)
    if run.micro_batches > 1:  # those before have left their gradients
        for weight in policy.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    held = LiveBytes()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    held.track([*policy.parameters(), *policy.buffers(), *gradients, ids, live])
    vocab = policy.model.get_output_embeddings().weight.shape[0]

    def score(hidden: Tensor, weight: Any, _: Tensor | None) -> Any:
        if policy.head_is_sharded:
            return FusedShardedLoss.apply(hidden, weight, live, vocab, run.shard)
        return FusedLoss.apply(hidden, weight, live)

    with held:
        policy([ids], score).backward()
    return held.peak


def sharded(policy: Policy, run: PlannedRun) -> Policy:
    """Shards the policy as the trainer does, over the ranks of the process group."""
    parallel = ParallelConfig(
        replicate=run.replicate, shard=run.shard, reshard=run.reshard, head=run.head
    )
    return wrapped(policy, parallel, Ranks(world=run.world), compute_dtype=run.compute_dtype)


def planned_model(config: Any, run: PlannedRun) -> "PreTrainedModel":
    """Makes a run's model without its weights, on the device or in the mode of the caller.

    Raises:
        UserError: adapters are wanted, but not possible.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    cast_weights(model, run.weights_dtype)
    if run.lora_rank:
        # peft moves new layers to the device of their base. torch cannot swap a fake weight, and
        # `add_lora` fills the layers there anyway.
        stays = patch.object(nn.Module, "to", lambda module, *args, **kwargs: module)
        with naming("model.lora"), stays:
            add_lora(
                model,
                rank=run.lora_rank,
                alpha=run.lora_rank,
                targets=run.lora_targets,
                head=run.lora_head,
                seed=0,
            )
    if run.checkpointing:
        recompute_activations(model)
    return model.train()


class _Policy(Policy):
    def forward(self, blocks: Blocks, score: Any, height: int = 0) -> Any:
        """As the trainer's, but for what a sharded head has beside its slice."""
        hidden = hidden_states(self.model, blocks)
        if self.head_is_sharded:
            head = self.model.get_output_embeddings()
            return score(hidden, local_slice(head.weight, hidden.dtype), None)
        weight = output_head(self.model).weight
        return score(hidden.to(weight.dtype), weight, None)


class FusedLoss(torch.autograd.Function):
    """Allocates and frees what the fused loss does on a GPU, and computes nothing.

    The loop over chunks of rows (``ops.chunked``): one buffer of logits, dH and dW with their sums
    in fp32. The gradients are made in the forward pass and wait for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, live: Tensor) -> Tensor:
        rows = hidden[live]
        wide = statistics_dtype(hidden.dtype)
        options = ChunkOptions("", DEFAULT_MEMORY_BUDGET, True, len(live))
        chunks = chunks_of(len(live), weight.shape[0], wide.itemsize, options)
        logits = hidden.new_empty((chunks.buffer_rows, chunks.pitch), dtype=wide)
        of_hidden = torch.empty_like(rows)
        sums = rows.new_empty((chunks.buffer_rows, rows.shape[1]), dtype=wide)
        of_weight = None
        if ctx.needs_input_grad[1]:
            direct = len(chunks.rows) == 1 and weight.numel() >= DIRECT_FROM
            of_weight = torch.empty_like(weight, dtype=weight.dtype if direct else wide)
        del logits, sums
        if of_weight is not None:
            of_weight = of_weight.to(weight.dtype)
        ctx.save_for_backward(of_hidden, of_weight, live)
        ctx.shape = hidden.shape
        return hidden.new_zeros((), dtype=wide)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_kept_gradients(ctx), None


class FusedShardedLoss(torch.autograd.Function):
    """The same for a slice [V_r, H] of the head and the rows of all ranks (``ops.sharded.steps``).

    What that loop holds until its next turn is held here, in variables of the same names.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, live: Tensor, vocab: int, world: int
    ) -> Tensor:
        own = hidden[live]
        wide = statistics_dtype(hidden.dtype)
        row_bytes = pitch_of(-(-vocab // world)) * wide.itemsize
        places = chunk_places(len(live), world, row_bytes, DEFAULT_MEMORY_BUDGET)
        height = -(-places[0].stop * world // PRODUCT_ROWS) * PRODUCT_ROWS
        logits = hidden.new_empty((height, pitch_of(len(weight))), dtype=wide)
        direct = len(places) == 1 and weight.numel() >= DIRECT_FROM
        of_weight, of_states = None, []
        for place in places:
            count = place.stop - place.start
            rows = own.new_empty((count * world, own.shape[1]))
            states = torch.empty_like(rows, dtype=wide)
            if of_weight is None and ctx.needs_input_grad[1]:
                of_weight = torch.empty_like(weight, dtype=weight.dtype if direct else wide)
            of_states.append(states.new_empty((count, own.shape[1])))
        if of_weight is not None:
            of_weight = of_weight.to(weight.dtype)
        ctx.save_for_backward(torch.cat(of_states).to(hidden.dtype), of_weight, live)
        ctx.shape = hidden.shape
        del logits
        return hidden.new_zeros((), dtype=wide)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_kept_gradients(ctx), None, None, None


def _kept_gradients(ctx: Any) -> tuple[Tensor, Tensor | None]:
    """The gradients of hidden states and head that the forward pass of a loss has made."""
    of_hidden, of_weight, live = ctx.saved_tensors
    return of_hidden.new_zeros(ctx.shape).index_copy(0, live, of_hidden), of_weight
