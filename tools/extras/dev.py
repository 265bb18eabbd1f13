"""The linters and the test runner start."""

import subprocess

for tool in ("ruff", "mypy", "clang-format", "pytest", "pre-commit"):
    subprocess.run([tool, "--version"], check=True, stdout=subprocess.DEVNULL)
