"""Measurements of the losses, beside every rival that is installed.

In a checkout `python -m benchmarks.bench_…`; in an installation the folder is
`wavalign_fast.benchmarks`, and `wavalign-fast bench` runs the set.
"""
