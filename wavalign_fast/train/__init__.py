"""The trainer: the step and its loop, checkpoints, metrics, and the run directory."""
