"""What the memory of a run depends on, in numbers."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from wavalign_fast.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run on ``replicate`` × ``shard`` ranks, as far as memory is concerned.

    Every size is that of the rank with the most work. Tokens are positions of the forward pass,
    padding included.
    """

    replicate: int = 1
    """Copies of the model."""
    shard: int = 1
    """Ranks that share a copy of weights, gradients and optimizer state."""
    weights_dtype: torch.dtype = torch.float32
    """Dtype of the weights that the optimizer updates."""
    compute_dtype: torch.dtype = torch.float32
    """Dtype of the forward and backward pass."""
    sampling_dtype: torch.dtype = torch.float32
    """Dtype of the weights, keys and values of rollouts."""
    optimizer: str = "adamw"
    """A name of ``state.MOMENTS``."""
    checkpointing: bool = False
    """Whether the backward pass recomputes the activations of each block."""
    lora_rank: int = 0
    """Rank of the adapters that alone are trained; 0 if all weights are."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that have one; empty for all."""
    lora_head: bool = False
    """Whether the output head has one."""
    reference: bool = False
    """Whether the first model is kept for the KL: as a copy, or with adapters without one."""
    rows: int = 1
    """Rows of a micro-batch."""
    length: int = 1
    """Tokens of a row of a micro-batch."""
    live: int = 1
    """Tokens of a micro-batch that carry loss."""
    micro_batches: int = 1
    """Micro-batches of a step; the gradients of the earlier ones wait for the last."""
    head: Literal["gathered", "sharded"] = "gathered"
    """Whether each rank multiplies with the whole output head or with its slice of it."""
    reshard: bool = True
    """Whether the gathered weights of a block are freed after its forward pass."""
    sampled: int = 0
    """Completions that a rank decodes at once; 0 if it decodes none."""
    sampled_length: int = 0
    """Tokens of a prompt and its completion."""
    keep_copy: bool = False
    """Whether the whole copy of the weights that samples stays while the run trains."""
    vllm: Literal["server", "in_process"] | None = None
    """Where vLLM samples, if it does. Its memory is not planned; ``sampled`` are then those of an
    evaluation."""

    def __post_init__(self) -> None:
        if not 0 < self.live <= self.rows * self.length:
            raise UserError(
                f"live tokens: {self.live} given, wanted 1 to {self.rows * self.length}, the "
                "tokens of a micro-batch"
            )

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.replicate * self.shard

    @property
    def sampling_phase(self) -> str:
        """When a rank decodes."""
        return "rollout" if self.vllm is None else "evaluation"

    @property
    def samples_a_copy(self) -> bool:
        """Whether rollouts need a whole copy of the weights (``rollout.Twin``)."""
        return self.sampled > 0 and (self.shard > 1 or self.weights_dtype != self.sampling_dtype)

    def local_elements(self, shape: torch.Size) -> int:
        """Elements of a weight that rank 0 holds: FSDP2 deals the first dimension, rounded up."""
        if self.shard == 1 or not shape:
            return math.prod(shape)
        return math.ceil(shape[0] / self.shard) * math.prod(shape[1:])
