"""Writes the table anew: python -m tests.gpu.budgets.triton."""

from .budgets import main

main()
