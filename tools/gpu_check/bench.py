"""Runs one part of the benchmarks in its own process.

    python -m tools.gpu_check.bench PART DIRECTORY

So a part that breaks the device or torch does not harm the next one. Within a part, ours and torch
are compared alone first: their records exist even if a rival hangs or crashes. A later comparison
of the same case replaces the earlier record.
"""

import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import bench_hybrid_loss, bench_linear_logprob, case, gpu, shapes
from benchmarks.options import Options
from benchmarks.record import add_case
from benchmarks.shapes import HybridShape, LogprobShape
from tools.gpu_check import files

ROUNDS = 7
CORE = ("ours-cuda", "ours-triton", "torch")
RIVALS = (*CORE, "cce-triton", "liger-scaled", "trl", "verl", "verl-triton")
HYBRID = (*CORE, "liger-selective")
COMPILED = "torch-compile"


def logprob_shape(name: str, title: str, source: str, size: tuple[int, int, int]) -> LogprobShape:
    """``size``: rows, hidden size, vocabulary."""
    rows, hidden, vocab = size
    speech = (vocab - 16384, vocab)
    return LogprobShape(
        name=name, title=title, source=source, hidden=hidden, vocab=vocab, speech=speech, rows=rows
    )


LARGE = logprob_shape(
    "h4096-v131072", "H 4096, V 131072", "no model: both powers of two", (8192, 4096, 131072)
)
SMALL_BODY = logprob_shape(
    "qwen3-1.7b", "Qwen3-1.7B", "its config.json, without speech ids", (4096, 2048, 151936)
)
LONG_ANSWERS = replace(
    shapes.PAPER,
    name="long-answers",
    title="VITA-Audio-Plus, long answers",
    source=f"{shapes.VITA_AUDIO.source}; 2250 rows with loss of 4608",
    length=512,
    text_tokens=256,
    speech_tokens=128,
    anchor_tokens=202,
)


@dataclass(frozen=True)
class Comparison:
    """A case and the providers that it compares."""

    shape: HybridShape | LogprobShape
    providers: tuple[str, ...]

    @property
    def benchmark(self) -> str:
        hybrid = isinstance(self.shape, HybridShape)
        return (bench_hybrid_loss if hybrid else bench_linear_logprob).NAME

    def build(self, options: Options) -> case.Case:
        if isinstance(self.shape, HybridShape):
            return bench_hybrid_loss.make_case(self.shape, "bf16", options)
        return bench_linear_logprob.make_case(self.shape, "bf16", "logp", options)


PARTS: dict[str, tuple[Comparison, ...]] = {
    "hybrid": (
        Comparison(shapes.PAPER, CORE),
        Comparison(LONG_ANSWERS, CORE),
        Comparison(shapes.PAPER, HYBRID),
    ),
    "large": (Comparison(LARGE, CORE), Comparison(LARGE, RIVALS)),
    "kernels": (
        Comparison(shapes.KERNEL, CORE),
        Comparison(SMALL_BODY, CORE),
        Comparison(shapes.KERNEL, RIVALS),
        Comparison(SMALL_BODY, RIVALS),
    ),
    "compiled": (
        Comparison(shapes.PAPER, (*HYBRID, COMPILED)),
        Comparison(shapes.KERNEL, (*RIVALS, COMPILED)),
    ),
}
"""Stage of tools/gpu_check.sh -> its comparisons."""


def run_part(part: str, directory: Path) -> int:
    """Measures all comparisons of a part; returns 1 if one of them failed."""
    failed = [c for c in PARTS[part] if not measured(c, directory)]
    print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    return int(bool(failed))


def measured(comparison: Comparison, directory: Path) -> bool:
    """Measures a comparison; returns whether its record was written."""
    options = Options(
        device="cuda", dtypes=("bf16",), rounds=ROUNDS, providers=comparison.providers
    )
    try:
        record = case.record_case(comparison.benchmark, comparison.build(options), options)
    except Exception:  # a rival may run out of memory while it is timed
        traceback.print_exc()
        record = None
    gpu.release_memory()
    if record is None:
        return False
    add_case(comparison.benchmark, record, directory, run=files.current_run())
    return True


def main(part: str, directory: str) -> int:
    if part not in PARTS:
        raise ValueError(f"part: got {part!r}, want one of {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        sys.exit("gpu_check: this torch sees no GPU")
    return run_part(part, Path(directory))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
