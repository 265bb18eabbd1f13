"""Benchmarks of the losses beside every installed rival.

In a checkout, run `python -m benchmarks.bench_…`. An installed package has this folder as
`wavalign_fast.benchmarks`, and `wavalign-fast bench` runs all of it.
"""
