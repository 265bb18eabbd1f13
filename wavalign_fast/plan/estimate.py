"""Bytes on the busiest rank in each phase of a step, and whether a GPU has them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from wavalign_fast.errors import naming
from wavalign_fast.models import check_head_can_be_sharded
from wavalign_fast.plan import state
from wavalign_fast.plan.planned_run import PlannedRun
from wavalign_fast.plan.training_peak import planned_model, training_peak

LIBRARIES = 2 * 2**30
"""Bytes that no tensor holds: the CUDA context, workspaces of cuBLAS and buffers of NCCL. A round
figure from practice; what a machine needs shows in ``nvidia-smi`` beside torch's own count."""
FRAGMENTS = 0.05
"""Share of the tensors' bytes that the allocator loses between its blocks; from practice too."""


class Phase(NamedTuple):
    """What a rank holds at the fullest moment of a phase."""

    name: str
    """``training`` (forward and backward pass), ``update`` (optimizer), and ``rollout`` or, where
    vLLM samples, ``evaluation``."""
    parts: dict[str, int]
    """Bytes by kind."""

    @property
    def tensors(self) -> int:
        """Bytes of tensors."""
        return sum(self.parts.values())

    @property
    def beside(self) -> int:
        """Bytes that libraries and gaps between tensors take."""
        return LIBRARIES + round(FRAGMENTS * self.tensors)

    @property
    def needed(self) -> int:
        """Bytes that the GPU must have."""
        return self.tensors + self.beside


@dataclass(frozen=True)
class Estimate:
    """The memory of a run on its busiest rank."""

    run: PlannedRun
    parameters: int
    """Weights of the model, over all ranks."""
    trained: int
    """Those of them that are trained."""
    phases: tuple[Phase, ...]

    @property
    def fullest(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.needed)

    @property
    def needed(self) -> int:
        """Bytes that the GPU must have."""
        return self.fullest.needed


def estimate(config: Any, run: PlannedRun, *, at_most: float | None = None) -> Estimate:
    """Estimates the memory of a run from its model's config.

    Args:
        config: of a transformers causal LM.
        at_most: bytes of the GPU. If what lasts needs more, the forward and backward pass, which
            takes seconds to trace, is left out: the run does not fit anyway.

    Raises:
        UserError: a head that is to be sharded and cannot be, or adapters that cannot be had.
    """
    with torch.device("meta"):
        model = planned_model(config, run)
    if run.head == "sharded" and run.world > 1:
        with naming("parallel.head"):
            check_head_can_be_sharded(model)
    weights = state.weight_bytes(model, run)
    lasting = {"weights": weights, "optimizer": state.moment_bytes(model, run)}
    if reference := state.reference_bytes(model, run):
        lasting["reference"] = reference
    copy = {}
    if run.samples_a_copy:
        copy[f"whole copy for {run.sampling_phase}s"] = state.twin_bytes(model, run)
    if run.keep_copy:
        lasting |= copy
    update = {"gradients": state.gradient_bytes(model, run)}
    if scratch := state.update_bytes(model, run):
        update["whole matrix for Muon"] = scratch
    phases = [Phase("update", lasting | update)]
    if run.sampled:
        rollout = {
            "keys and values": state.cache_bytes(config, run),
            "logits": state.decode_bytes(model.get_output_embeddings().weight.shape[0], run),
        }
        phases.append(Phase(run.sampling_phase, lasting | copy | rollout))
    if at_most is None or max(phase.needed for phase in phases) <= at_most:
        passing = training_peak(config, run) - weights
        phases.insert(0, Phase("training", {**lasting, "activations and gradients": passing}))
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    every, trained = sum(n for n, _ in counts), sum(n for n, trained in counts if trained)
    return Estimate(run, every, trained, tuple(phases))
