"""Fine-tunes a transformers model in a loop of plain torch, without ever building its logits.

python plain_loop.py MODEL_DIR FILE.txt
torchrun --nproc-per-node 2 plain_loop.py MODEL_DIR FILE.txt
"""

import os
import sys

import torch
import torch.distributed as dist
from texts import steps_of
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from wavalign_fast.integrations.causal_lm import fused_loss

ACCUMULATE = 2


def train(model, steps, *, learning_rate=1e-3):
    """One optimizer step for each list of micro-batches; returns their losses.

    All labels of a step weigh alike, however they lie in its micro-batches on all ranks.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    model.train()
    with fused_loss(model):
        for micro_batches in steps:
            count = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
            total = torch.zeros(())
            if ranks > 1:
                dist.all_reduce(count)
            for batch in micro_batches:
                loss = wrapped(**batch, num_items_in_batch=count).loss
                (loss * ranks).backward()  # DDP averages the gradients over the ranks
                total += loss.detach()
            if ranks > 1:
                dist.all_reduce(total)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total.item())
    return losses


def main(model_directory, text_file):
    rank, ranks = 0, 1
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
        rank, ranks = dist.get_rank(), dist.get_world_size()
    steps = steps_of(model_directory, text_file, accumulate=ACCUMULATE, rank=rank, ranks=ranks)
    losses = train(AutoModelForCausalLM.from_pretrained(model_directory), steps)
    if rank == 0:
        print("\n".join(f"{loss:.4f}" for loss in losses))
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
