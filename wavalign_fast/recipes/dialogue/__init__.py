"""Your own model and data: a model directory, JSONL files, and a reward function."""
