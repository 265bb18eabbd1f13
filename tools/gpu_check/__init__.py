"""The Python part of tools/gpu_check.sh: what a stage runs, and what becomes of its results."""
