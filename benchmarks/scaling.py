"""How long a training step takes on 1, 8 and 64 GPUs: arithmetic from published rates.

python -m benchmarks.scaling [--measure] [--save]

Counts operations and bytes of a step of the paper's model and divides them by rates. Nothing here
has run on a GPU. ``--measure`` times on this machine's CPU what the CPU does in every step, and
keeps it in results/scaling.json; ``--save`` writes docs/scaling.md from that, the arithmetic and
results/memory.json.
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from wavalign_fast.gpu_specifications import GPUS
from wavalign_fast.outputs import write_whole
from wavalign_fast.plan.planned_run import PlannedRun
from wavalign_fast.plan.state import cached_values
from wavalign_fast.plan.training_peak import planned_model
from wavalign_fast.rollout.draws import uniforms
from wavalign_fast.train.deal import deal
from wavalign_fast.train.flops import ModelSize, StepTokens, model_size, step_flops
from wavalign_fast.train.token_blocks import Row

from .paper_model import paper_config
from .published_times import PUBLISHED
from .record import RESULTS, load, machine, save

PAGE = RESULTS.parents[1] / "docs" / "scaling.md"
GPU = next(gpu for gpu in GPUS if gpu.name == "H100")
NODE = 8
"""GPUs that NVLink connects."""
NVLINK = 360e9
"""Bytes per second and direction that collectives reach, 80% of 450 GB/s (NVIDIA H100 data sheet:
900 GB/s in both directions together)."""
NETWORK = 45e9
"""The same between nodes, 90% of a 400 Gb/s NDR InfiniBand adapter for each GPU (NVIDIA DGX H100
data sheet)."""
TRAINING_SHARE = 0.4
"""Share of the peak in forward and backward pass. Assumed: between 0.30, which nanotron published
for a 1B Llama on 8 H100 (huggingface.co/nanotron/old_bench, dp-4_tp-2: 300 TFLOP/s), and what
GEMMs alone reach."""
MICRO_BATCH = 16384
"""Tokens of a forward and backward pass on a GPU."""
BANDWIDTH_SHARE = 0.7
"""Share of the memory's peak in decoding and in the optimizer. Assumed, with CUDA graphs."""


@dataclass(frozen=True)
class Step:
    """The work of one step over all GPUs."""

    prompts: int = 64
    group: int = 8
    prompt_tokens: int = 200
    new_tokens: int = 1000
    """Ids of a completion, text and speech."""
    text_share: float = 0.25
    """Share of them that are text, which alone carry the policy loss."""
    demonstrations: int = 128

    @property
    def completions(self) -> int:
        return self.prompts * self.group

    @property
    def tokens(self) -> StepTokens:
        row = self.prompt_tokens + self.new_tokens - 1
        live = self.completions * self.new_tokens * self.text_share
        return StepTokens(
            trained=[row] * (self.completions + self.demonstrations),
            live=int(live) + self.demonstrations * self.new_tokens,
        )


@dataclass(frozen=True)
class Times:
    """Seconds of a step's phases on the slowest GPU."""

    gpus: int
    rollout: float
    copy: float
    """Sending the weights to the copy that samples."""
    compute: float
    communication: float
    """Of forward and backward pass, hidden or not."""
    optimizer: float

    @property
    def training(self) -> float:
        """FSDP2 sends one block while it computes another: the slower of the two counts."""
        return max(self.compute, self.communication)

    @property
    def total(self) -> float:
        return self.rollout + self.copy + self.training + self.optimizer

    @property
    def bound(self) -> str:
        parts = {
            "decoding": self.rollout,
            "arithmetic" if self.compute >= self.communication else "network": self.training,
            "copy of weights": self.copy,
            "optimizer": self.optimizer,
        }
        return max(parts, key=lambda name: parts[name])


def sizes() -> tuple[ModelSize, int, int]:
    """Matrices, weights, and bytes of keys and values of a token, in bf16."""
    config = paper_config()
    with torch.device("meta"):
        model = planned_model(config, PlannedRun())
    return (
        model_size(model),
        sum(w.numel() for w in model.parameters()),
        2 * cached_values(config, 1),
    )


def step_times(gpus: int, step: Step, *, hybrid: bool = True) -> Times:
    """Seconds of a step.

    Args:
        hybrid: several nodes keep a copy of the model each (HSDP); else one is sharded over all.
    """
    size, weights, cached = sizes()
    flops = step_flops(size, step.tokens, recompute=True)
    compute = (flops.forward_backward + flops.recomputation) / gpus
    micro_batches = math.ceil(sum(step.tokens.trained) / gpus / MICRO_BATCH)
    shard = min(gpus, NODE) if hybrid else gpus
    link = NVLINK if shard <= NODE else NETWORK
    # Each micro-batch gathers the bf16 weights twice and reduces fp32 gradients once.
    moved = _others(shard) * weights * (2 + 2 + 4) * micro_batches / link
    replicas = gpus // shard
    moved += 2 * _others(replicas) * 4 * weights / shard / NETWORK  # an all-reduce of the shards
    return Times(
        gpus=gpus,
        rollout=decoding(math.ceil(step.prompts / gpus) * step.group, step, weights, cached),
        copy=_others(shard) * 2 * weights / link,
        compute=compute / (TRAINING_SHARE * GPU.matrix_flops),
        communication=moved,
        # Reads weights, gradients and moments in fp32, writes weights and moments.
        optimizer=28 * weights / shard / (BANDWIDTH_SHARE * GPU.memory_bytes),
    )


def decoding(rows: int, step: Step, weights: int, cached: int) -> float:
    """Seconds to decode ``rows`` together: each id reads all weights and the rows' caches once."""
    length = step.prompt_tokens + step.new_tokens / 2
    moved = step.new_tokens * (2 * weights + rows * length * cached)
    return moved / (BANDWIDTH_SHARE * GPU.memory_bytes)


def judged(times: Times, step: Step, seconds: float, workers: int) -> tuple[float, float]:
    """Seconds of a step with judges behind the rollouts, and if they overlapped them.

    Args:
        seconds: of one judgement; ``workers`` of them run at once for each GPU.
    """
    own = math.ceil(step.prompts / times.gpus) * step.group
    judging = math.ceil(own / workers) * seconds
    # The last answers are judged after the last token, however early the others were.
    overlapped = max(times.rollout, judging) + seconds if seconds else times.rollout
    return times.total + judging, times.total - times.rollout + min(
        overlapped, times.rollout + judging
    )


def micro_batch_seconds() -> float:
    """Seconds of arithmetic of a micro-batch of rows as in a step."""
    tokens = sum(Step().tokens.trained)
    return step_times(1, Step()).compute * MICRO_BATCH / tokens


def head_seconds(ranks: int, rows: int, link: float) -> dict[str, float]:
    """Seconds that the head's collectives take in a micro-batch, by ``parallel.head``."""
    config = paper_config()
    head = config.vocab_size * config.hidden_size
    states = ranks * rows * config.hidden_size
    statistics_ = 12 * ranks * ranks * rows
    others = _others(ranks)
    return {
        "gathered": others * (2 + 4) * head / link,
        "sharded": others * ((2 + 4) * states + statistics_) / link,
    }


def level_rows(ranks: int) -> int:
    """Live rows of a GPU at which both heads move about the same: all rows together are V."""
    return int(paper_config().vocab_size) // ranks


def gemm_share() -> float:
    """Share of the peak that a published kernel for such heads reaches on an H100."""
    found = next(p for p in PUBLISHED if p.gpu == "H100")
    flops = 2 * found.products * found.rows * found.hidden * found.vocab
    return flops / (found.milliseconds / 1e3) / GPU.matrix_flops


def measured(step: Step) -> dict[str, Any]:
    """CPU seconds of what every rank does on its CPU in a step: random numbers and dealing."""
    prompts = torch.arange(step.prompts).repeat_interleave(step.group)
    group = torch.arange(step.group).repeat(step.prompts)
    rows = [
        Row(n, True, (1,) * step.prompt_tokens, (1,) * step.new_tokens)
        for n in range(step.completions)
    ]
    return {
        "machine": {name: machine()[name] for name in ("cpu", "threads", "torch", "date")},
        "draws_s": _median(lambda: uniforms(0, 1, prompts, group, torch.arange(step.new_tokens))),
        "dealing_s": _median(lambda: deal(rows, world=NODE, block_tokens=MICRO_BATCH)),
    }


def _median(run: Any, times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def _others(ranks: int) -> float:
    """The share of a collective's bytes that comes from other ranks."""
    return (ranks - 1) / ranks


def main() -> None:
    from .scaling_page import page

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="time the CPU's part here")
    parser.add_argument("--save", action="store_true", help="write docs/scaling.md")
    args = parser.parse_args()
    if args.measure:
        torch.set_num_threads(1)
        found = measured(Step())
        save("scaling", {"command": "python -m benchmarks.scaling --measure --save", **found})
    text = page(load("scaling") or {}, load("memory") or {})
    if args.save:
        write_whole(PAGE, text.encode())
    else:
        print(text)


if __name__ == "__main__":
    main()
