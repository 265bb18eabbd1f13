"""What runs of the paper's model hold on a GPU, by `wavalign_fast.plan`: no GPU, no weights.

    python -m benchmarks.bench_memory [--save]

Estimates the runs that were designed for and keeps the bytes in results/memory.json.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from wavalign_fast.plan.estimate import estimate
from wavalign_fast.plan.planned_run import PlannedRun

from .commit import own_commit, refuse_dirty
from .paper_model import paper_config
from .record import machine, save

NAME = "memory"
GPU_BYTES = 80 * 2**30
"""Of runs whose lasting state is larger, the forward and backward pass is not traced."""


@dataclass(frozen=True)
class Sizes:
    """A micro-batch and the rollouts of a rank."""

    rows: int = 8
    length: int = 2048
    live: int = 4000
    sampled: int = 64
    sampled_length: int = 2048


def runs(sizes: Sizes) -> dict[str, PlannedRun]:
    """The planned runs by name; a step has one micro-batch where the name says nothing else."""
    half = torch.bfloat16
    mixed = PlannedRun(compute_dtype=half, sampling_dtype=half, checkpointing=True, **asdict(sizes))
    small = replace(mixed, weights_dtype=half, optimizer="adamw8bit")
    lora = replace(mixed, weights_dtype=half, lora_rank=64, reference=True)
    four = replace(mixed, shard=4)
    return {
        "1 GPU, fp32 weights": mixed,
        "1 GPU, bf16 weights, adamw8bit": small,
        "1 GPU, LoRA r 64 over bf16": lora,
        "4 GPUs": four,
        "4 GPUs, head sharded": replace(four, head="sharded"),
        "4 GPUs, several micro-batches": replace(four, micro_batches=2),
        "4 GPUs, copy kept": replace(four, keep_copy=True),
        "4 GPUs, reference policy": replace(four, reference=True),
        "8 GPUs": replace(mixed, shard=8),
    }


def measured(config: Any, planned: dict[str, PlannedRun]) -> list[dict[str, Any]]:
    """Bytes of tensors on the busiest rank: what lasts, and each phase by kind."""
    found = []
    for name, run in planned.items():
        phases = {phase.name: phase for phase in estimate(config, run, at_most=GPU_BYTES).phases}
        found.append(
            {
                "name": name,
                "ranks": run.world,
                "lasting_bytes": phases["update"].tensors,
                "phases": {key: phase.parts for key, phase in phases.items()},
                "needed_bytes": max(phase.needed for phase in phases.values()),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", action="store_true", help="write into benchmarks/results")
    args = parser.parse_args()
    if args.save:
        refuse_dirty(parser, own_commit())
    found = {
        "benchmark": NAME,
        "command": "python -m benchmarks.bench_memory --save",
        "machine": machine(),
        "sizes": asdict(Sizes()),
        "cases": measured(paper_config(), runs(Sizes())),
    }
    if args.save:
        save(NAME, found)
    else:
        print(json.dumps(found["cases"], indent=2))


if __name__ == "__main__":
    main()
