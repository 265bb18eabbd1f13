"""The model that is trained, with its loss inside the forward pass, wrapped for many ranks.

FSDP2 shards it over a mesh (replicate, shard): (N, 1) keeps a whole copy on every rank as DDP does,
(1, N) shards one copy over all ranks, (nodes, GPUs) is hybrid sharding. Gradients are sums over the
ranks, never means: the loss of a rank is its share of the step's loss.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.errors import UserError, naming
from wavalign_fast.losses.two_heads import TwoHeads
from wavalign_fast.models import (
    EmbeddedBlock,
    PackedRows,
    PromptEmbeddings,
    StreamBlock,
    TwoStreams,
    check_head_can_be_sharded,
    heads_of,
    hidden_states,
    logit_transform,
    output_head,
    second_head,
    sharded_head,
    unsplit_modules,
    without_lora,
)
from wavalign_fast.ops import HeadShard, LogitTransform
from wavalign_fast.ops.sharded.head import sum_over_copies
from wavalign_fast.train.ranks import Ranks, backend_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

UNIT_MAY_BE_INCOMPLETE = hasattr(FSDPState, "_force_complete_incomplete_states")
"""Whether a unit of several modules is gathered anew after a forward pass that left some out."""

Blocks = Sequence[Tensor | PackedRows]
Head = Tensor | HeadShard | TwoHeads
Score = Callable[[Tensor, Head, Tensor | None], T]
"""``score(hidden [T, H], weight [V, H], bias [V] or None)``; its result must be a pytree. With a
sharded head, weight and bias are this rank's slices. Of two streams it gets both heads."""


class Policy(nn.Module):
    """A causal LM whose forward pass ends with a function of hidden states and output head.

    The function runs inside ``forward`` because FSDP2 has gathered the head there, and only there.

    Args:
        prompt_embeddings: the vectors that blocks name by ids behind the vocabulary, if any do.
        streams: how the ids of two streams stand in one list, for a model that has two.
        mtp: layers beside the model that are trained with it, each a module of its ``layers``.

    Attributes:
        head_is_sharded: whether each rank keeps its slice of the head, which is then never gathered
            in training. ``wrapped`` decides.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        prompt_embeddings: PromptEmbeddings | None = None,
        streams: TwoStreams | None = None,
        mtp: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.mtp = mtp
        self.prompt_embeddings = prompt_embeddings
        self.streams = streams
        self.head_is_sharded = False

    @property
    def vectors(self) -> int:
        """How many ids behind the vocabulary prompts may hold."""
        return 0 if self.prompt_embeddings is None else len(self.prompt_embeddings)

    @property
    def transform(self) -> LogitTransform:
        """What the model does to its logits; ``score`` passes it on to the loss."""
        return logit_transform(self.model)

    def forward(self, blocks: "Blocks", score: "Score[T]", height: int = 0) -> T:
        """Returns ``score`` of the hidden states of blocks, as ``hidden_states`` takes them.

        Args:
            height: for a sharded head, the most rows that any rank multiplies with it in this call,
                the same on all ranks.
        """
        if self.streams is not None:
            parts = [StreamBlock.of(self._filled(block), self.streams) for block in blocks]
            moved = [part.to(self.model.device, non_blocking=True) for part in parts]
            hidden = torch.cat([part.hidden_states(self.model) for part in moved])
            return score(hidden, heads_of(self.model), None)
        hidden = hidden_states(self.model, [self._placed(block) for block in blocks])
        if self.head_is_sharded:
            return score(hidden, *sharded_head(self.model, height=height, dtype=hidden.dtype))
        weight, bias, _ = output_head(self.model)
        # Adapters of a head in bfloat16 are float32, and so is their sum.
        return score(hidden.to(weight.dtype), weight, bias)

    def embedded(self, block: "Tensor | PackedRows") -> Tensor:
        """Returns what the layers read of a block, [T, H]. Call it in the forward pass."""
        placed = self._placed(block)
        if isinstance(placed, EmbeddedBlock):
            return placed.embedded(self.model).flatten(0, 1)
        ids = placed if isinstance(placed, Tensor) else placed.ids
        rows: Tensor = self.model.get_input_embeddings()(ids)
        return rows.flatten(0, 1)

    def _placed(self, block: "Tensor | PackedRows") -> "Tensor | PackedRows | EmbeddedBlock":
        return self._filled(block).to(self.model.device, non_blocking=True)

    def _filled(self, block: "Tensor | PackedRows") -> "Tensor | PackedRows | EmbeddedBlock":
        return block if self.prompt_embeddings is None else self.prompt_embeddings.fill(block)


class WithoutLora:
    """A policy with its adapters off, in eval mode: the reference of a run that trains adapters.

    It has no weights of its own.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @property
    def transform(self) -> LogitTransform:
        """As of the policy."""
        return self.policy.transform

    def __call__(self, blocks: "Blocks", score: "Score[T]", height: int = 0) -> T:
        """Returns what the policy would, were it the model that training began with."""
        training = self.policy.training
        self.policy.eval()
        try:
            with without_lora(self.policy.model):
                result: T = self.policy(blocks, score, height)
                return result
        finally:
            self.policy.train(training)


def mesh_shape(config: ParallelConfig, world: int) -> tuple[int, int]:
    """Returns (replicate, shard) for a world of ranks.

    Raises:
        UserError: the two do not multiply to the number of ranks.
    """
    shard = config.shard or world // config.replicate
    if config.replicate * shard != world:
        raise UserError(
            f"parallel: replicate {config.replicate} × shard {config.shard or 'all'} given for "
            f"{world} ranks, wanted a product of {world}"
        )
    return config.replicate, shard


def wrapped(
    policy: Policy,
    config: ParallelConfig,
    ranks: Ranks,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Policy:
    """Moves ``policy`` to the rank's device and shards it over the ranks, in place.

    A rank's device never holds more than one unit whole. Weights on the meta device get memory for
    this rank's shards, without values. Alone a policy is left whole.

    Args:
        compute_dtype: dtype of the forward and backward pass; the weights and the gradients that
            the optimizer sees keep theirs. ``None`` or the weights' own dtype changes nothing. A
            process that is alone needs no wrapper otherwise, for its hooks cost a tiny model half
            of its time.

    Raises:
        UserError: ``parallel`` does not fit the ranks or the model; ``OtherRankError`` on all ranks
            but the first.
    """
    # The first weight is an embedding. Adapters, which can have another dtype, come later.
    weights_dtype = next(policy.parameters()).dtype
    compute_dtype = compute_dtype or weights_dtype
    with ranks.failing_together():  # every rank finds the same mistakes, and one reports them
        shape = mesh_shape(config, ranks.world)
        policy.head_is_sharded = config.head == "sharded" and ranks.world > 1
        if policy.head_is_sharded:
            with naming("parallel.head"):
                check_head_can_be_sharded(policy.model)
    if ranks.world == 1 and compute_dtype == weights_dtype:
        # Fake tensors, which a plan is made with, cannot be moved in every release of torch.
        return policy if policy.model.device == ranks.device else policy.to(ranks.device)
    if not dist.is_initialized():  # alone, only for the two dtypes
        backend, store = backend_of(ranks.device), dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, rank=0, world_size=1, store=store)
    mesh = init_device_mesh(ranks.device.type, shape, mesh_dim_names=("replicate", "shard"))
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    if all(weight.dtype == compute_dtype for weight in policy.parameters()):
        precision = MixedPrecisionPolicy()
    for modules in _units(policy):
        _shard(modules, mesh, precision, config)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Else the reduction is PREMUL_SUM, which gloo's all-reduce does not have.
            module.set_force_sum_reduction_for_comms(True)
    # As `to_empty`, which would empty the buffers too.
    return policy._apply(
        lambda tensor: torch.empty_like(tensor, device=ranks.device) if tensor.is_meta else tensor
    )


def _shard(
    modules: list[nn.Module],
    mesh: DeviceMesh,
    precision: MixedPrecisionPolicy,
    config: ParallelConfig,
) -> None:
    if len(modules) == 1:
        fully_shard(
            modules[0], mesh=mesh, mp_policy=precision, reshard_after_forward=config.reshard
        )
    else:
        # The head is used last in the forward pass and first in the backward pass.
        fully_shard(modules, mesh=mesh, mp_policy=precision, reshard_after_forward=False)


def _units(policy: Policy) -> list[list[nn.Module]]:
    """Returns the modules that are gathered together: each block, then the last norm and the head.

    In one unit with the norm the head's gradient is reduced first, behind the backward pass of the
    blocks; in the root it would come last, alone. A sharded head is a unit of its own, whose
    forward nothing calls in training, so that nothing gathers it. In an older torch the norm and
    the head stay in the root, because nothing calls the head's forward.
    """
    model: Any = policy.model
    units = [[module] for module in unsplit_modules(model)]
    if policy.mtp is not None:
        units += [[layer] for layer in policy.mtp.layers]  # type: ignore[union-attr]
    if policy.head_is_sharded:
        return [*units, [model.get_output_embeddings()]]
    if not UNIT_MAY_BE_INCOMPLETE:
        return units
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if (second := second_head(model)) is not None:
        return [*units, [model.upper.norm, head], [model.mimo.norm, second]]
    norm = next(
        (m for name, m in model.named_modules() if name.split(".")[-1] in ("norm", "ln_f")), None
    )
    if type(head) is nn.Linear and norm is not None:
        tied = embedding is not None and embedding.weight is head.weight
        units.append([*([embedding] if tied else []), norm, head])
    return units


class GradientAccumulation:
    """What FSDP2 does with the gradients of the micro-batches of a step; nothing without a wrapper.

    With the weights sharded, each micro-batch is reduced to the shards, because whole gradients of
    a large model do not fit beside it; only copies of the model wait for the last micro-batch.
    """

    def __init__(self, policy: Policy, config: ParallelConfig, ranks: Ranks) -> None:
        self._policy = policy
        self._root = policy if isinstance(policy, FSDPModule) else None
        self._whole = mesh_shape(config, ranks.world)[1] == 1
        self._reshard = config.reshard

    def before(self, *, last: bool) -> None:
        """Prepares for the forward and backward pass of a micro-batch."""
        if self._root is None:
            return
        if self._whole:
            self._root.set_requires_gradient_sync(last)
        else:
            self._root.set_requires_all_reduce(last)
        self._root.set_is_last_backward(last)
        self._root.set_reshard_after_backward(self._reshard or last)

    def after(self) -> None:
        """Completes the gradients after the last backward pass of the step."""
        if self._policy.head_is_sharded:
            # FSDP2 reduces the gradients of what it has gathered, and it never gathers this head.
            for parameter in self._policy.model.get_output_embeddings().parameters():
                if parameter.requires_grad:
                    sum_over_copies(parameter)
