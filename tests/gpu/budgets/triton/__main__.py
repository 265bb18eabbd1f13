"""Rewrites the table: python -m tests.gpu.budgets.triton."""

from .budgets import main

main()
