"""Rollouts by the C++ decode, by it with torch's GEMMs, and by transformers' own code: CPU seconds.

    python -m benchmarks.bench_rollout [recipe|medium] [rounds]

`recipe` is the shipped model with 8 prompts × 8 completions of up to 72 tokens; `medium` a random
Qwen2 of 8 layers, H 512, V 32 768, with 4 × 4 completions of 32 tokens. One thread, all sides in
turn in one process. Nothing is timed unless all sides give the same completions in float32. With
torch's GEMMs it runs as on a processor without wide vectors.
"""

import random
import statistics
import sys
from typing import Any
from unittest.mock import patch

import torch

from wavalign_fast.rollout import lean_model, sample_completions
from wavalign_fast.rollout.lean_decode import LeanDecode

from .timing import HostClock


def recipe() -> tuple[Any, list[Any], dict[str, int]]:
    from wavalign_fast.recipes.spoken_sums.task import SpokenSums

    task = SpokenSums()
    chosen = random.Random(0).sample(list(task.train_examples), 8)
    prompts = [example.prompt_ids for example in chosen]
    return task.load_model(), prompts, {"group_size": 8, "max_new_tokens": 72}


def medium() -> tuple[Any, list[Any], dict[str, int]]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32768,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=1536,
    )
    prompts = [[2 + (37 * i + 11 * j) % 32000 for j in range(6 + i % 7)] for i in range(4)]
    return Qwen2ForCausalLM(config).eval(), prompts, {"group_size": 4, "max_new_tokens": 32}


def main(name: str = "recipe", rounds: str = "9") -> None:
    torch.set_num_threads(1)
    model, prompts, options = {"recipe": recipe, "medium": medium}[name]()

    def ours() -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return sample_completions(
            model, prompts, eos_id=1, pad_id=0, generator=generator, **options
        )

    def gemms() -> list[list[int]]:
        with patch.object(lean_model, "linear_is_fast", lambda _: False):
            return ours()

    def transformers() -> list[list[int]]:
        with patch.object(LeanDecode, "of", lambda *_: None):
            return ours()

    if not ours() == gemms() == transformers():
        sys.exit("the sides give other completions: nothing is timed")
    sides = {"ours": ours, "ours with torch's GEMMs": gemms, "transformers": transformers}
    clock, found = HostClock(), []
    for turn in range(int(rounds)):
        order = list(sides)[:: 1 if turn % 2 else -1]
        found.append({side: clock.time(sides[side])[1] for side in order})
    medians = {side: statistics.median(one[side] for one in found) for side in sides}
    print(f"{name}: ours {medians['ours']:.3f} CPU s, {rounds} rounds")
    for side in list(sides)[1:]:
        ratios = sorted(one[side] / one["ours"] for one in found)
        print(
            f"  {side} {medians[side]:.3f} CPU s, ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
