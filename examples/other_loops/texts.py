"""Micro-batches of the lines of a text file."""

from pathlib import Path

from transformers import AutoTokenizer

LINES = 4
"""Of a micro-batch."""


def steps_of(model_directory, text_file, *, accumulate, rank=0, ranks=1):
    """Lists of ``accumulate`` micro-batches, as many for each rank; a rest is left out."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    lines = [line for line in Path(text_file).read_text(encoding="utf-8").splitlines() if line]
    batches = []
    for start in range(0, len(lines) - LINES + 1, LINES):
        batch = tokenizer(lines[start : start + LINES], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batches.append({**batch, "labels": labels})
    whole = len(batches) // (accumulate * ranks) * ranks
    return [batches[i * accumulate : (i + 1) * accumulate] for i in range(rank, whole, ranks)]
