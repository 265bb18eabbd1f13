"""The benchmark's plots, of losses timed here on tiny shapes."""

import subprocess
from pathlib import Path

command = ["wavalign-fast", "bench", "--quick", "--output", "bench"]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
assert list(Path("bench").rglob("*.png")) or list(Path("bench").rglob("*.svg"))
