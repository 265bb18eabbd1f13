"""Runs the benchmarks on a pretended GPU, as a child process of ``test_pretended_gpu``."""

import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import bench_dpo, bench_hybrid_loss, bench_linear_logprob, case
from benchmarks.options import Options
from benchmarks.shapes import DPO, LOGPROB, QUICK
from tools.gpu_check.pretended import SMALL, pretended, shrunk


def main(folder: Path) -> None:
    options = Options(device="cuda", dtypes=("fp32",), rounds=2, directory=folder, quick=True)
    pairs = replace(DPO["quick"], pairs=2, length=3, **SMALL)
    cases = [
        lambda operation=operation: bench_linear_logprob.make_case(
            shrunk(LOGPROB["quick"]), "fp32", operation, options
        )
        for operation in ("logp+entropy", "mean CE")
    ]
    cases += [
        lambda: bench_hybrid_loss.make_case(shrunk(QUICK), "fp32", options),
        lambda: bench_dpo.make_case(pairs, "fp32", options),
    ]
    with pretended():
        sys.exit(case.run_cases("pretended", cases, options))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
