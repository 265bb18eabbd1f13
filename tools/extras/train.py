"""Three steps of the recipe that ships with the package, with its judge and its report."""

import subprocess
from pathlib import Path

SMALL = [
    "rollout.prompts=2", "rollout.group_size=3", "anchor.rows=3", "train.steps=2",
    "train.eval_items=2", "task.judge_workers=1",
]  # fmt: skip
command = ["wavalign-fast", "train", "--recipe", "spoken-sums", "--name", "short", *SMALL]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
assert Path("runs/short/report.html").stat().st_size > 10_000
