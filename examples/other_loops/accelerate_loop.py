"""Fine-tunes a transformers model in a loop of Accelerate, without ever building its logits.

accelerate launch accelerate_loop.py MODEL_DIR FILE.txt
"""

import sys

import torch
from accelerate import Accelerator
from texts import steps_of
from transformers import AutoModelForCausalLM

from wavalign_fast.integrations.causal_lm import fused_loss

ACCUMULATE = 2


def train(model, steps, accelerator, *, learning_rate=1e-3):
    """One optimizer step for each list of micro-batches; returns their losses.

    All labels of a step weigh alike, however they lie in its micro-batches on all ranks.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    model.train()
    with fused_loss(model):
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        # What `backward` divides by, and DDP by averaging over the ranks.
        divided = accelerator.gradient_accumulation_steps * accelerator.num_processes
        for micro_batches in steps:
            count = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
            count = accelerator.reduce(count.to(accelerator.device))
            total = torch.zeros((), device=accelerator.device)
            for batch in micro_batches:
                batch = {name: value.to(accelerator.device) for name, value in batch.items()}
                with accelerator.accumulate(wrapped):
                    loss = wrapped(**batch, num_items_in_batch=count).loss
                    accelerator.backward(loss * divided)
                    optimizer.step()
                    optimizer.zero_grad()
                total += loss.detach()
            losses.append(accelerator.reduce(total).item())
    return losses


def main(model_directory, text_file):
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE)
    place = {"rank": accelerator.process_index, "ranks": accelerator.num_processes}
    steps = steps_of(model_directory, text_file, accumulate=ACCUMULATE, **place)
    losses = train(AutoModelForCausalLM.from_pretrained(model_directory), steps, accelerator)
    accelerator.print("\n".join(f"{loss:.4f}" for loss in losses))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
