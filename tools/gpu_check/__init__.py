"""The Python part of tools/gpu_check.sh: the programs of its stages, and their results."""
