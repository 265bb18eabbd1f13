"""Where the trainer's device tests run: each logic on the CPU here, and on GPUs where there are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from tests.ranks import run_ranks
from tests.train.conftest import FAST, ToyTask
from wavalign_fast.config.layers import parse_overrides, resolve_config
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.trainer import Trainer

PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WORLDS = [
    ("cpu", 1),
    pytest.param("cuda", 1, marks=pytest.mark.gpu),
    pytest.param("cuda", 2, marks=pytest.mark.gpu),
]
"""Device and number of ranks. What two ranks do over gloo is tested in tests/train."""
MIXED = ("model.compute_dtype=bfloat16", "train.eval_items=0", "telemetry.tensorboard=false")
"""float32 weights computed with in bfloat16, which wraps even a process that is alone in FSDP2."""


def need_gpus(count: int) -> None:
    """Skips the test where there are fewer GPUs."""
    found = torch.cuda.device_count()
    if found < count:
        pytest.skip(f"needs {count} GPUs, found {found}")


def on_ranks(device: str, world: int, function: Callable[..., Any], *args: Any) -> list:
    """Calls ``function`` on each of ``world`` ranks: forked over gloo, or each with its GPU."""
    if device == "cuda":
        need_gpus(world)
    return run_ranks(world, function, *args, device=device, deadline=240)


def ranks_of(device: str) -> Ranks:
    """This process among the ranks of its group."""
    place = torch.device(device, dist.get_rank()) if device == "cuda" else torch.device(device)
    return Ranks(dist.get_rank(), dist.get_world_size(), place)


def toy_config(*overrides: str) -> RunConfig:
    """The toy's configuration."""
    return resolve_config([{"recipe": "toy"}, parse_overrides(FAST), parse_overrides(overrides)])


def trained(config: RunConfig, directory: Path, ranks: Ranks) -> Trainer:
    """Trains the toy, from its checkpoint if there is one."""
    directory.mkdir(exist_ok=True)
    ranks.barrier()
    trainer = Trainer(config, ToyTask(), directory, ranks)
    trainer.fit(Console(quiet=True))
    return trainer


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The whole weights on the CPU, by name."""
    return {
        name: (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach().cpu()
        for name, weight in trainer.policy.named_parameters()
    }


def synchronise(device: str) -> None:
    """Waits for the GPU, if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()
