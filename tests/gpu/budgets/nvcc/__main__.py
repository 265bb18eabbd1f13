"""Rewrites the budgets: python -m tests.gpu.budgets.nvcc."""

import tempfile
from pathlib import Path

from .compiled import BUDGETS, budgets, compile_all

with tempfile.TemporaryDirectory() as folder:
    text = budgets(compile_all(Path(folder)))
BUDGETS.write_text(text, encoding="utf-8")
print(text, end="")
