"""How fast a GPU can be at best: bytes, operations and a roofline for each kernel. Nothing is run.

python -m benchmarks.gpu_model [--save]

A time here is a lower bound. It assumes GEMMs and memory at the peak of the data sheet, each kernel
at the slower of its limits, a perfect cache and free launches. A GPU takes longer, and only a
measurement can say by how much. ``--save`` writes results/gpu_model.json and docs/gpu_model.md.
Tests compare the bytes, exponentials and instructions of the row kernels with the kernels
themselves, run on the CPU.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wavalign_fast.gpu_specifications import GPUS, Gpu
from wavalign_fast.ops.chunked.api import DEFAULT_MEMORY_BUDGET
from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS, ChunkOptions, chunks_of
from wavalign_fast.ops.chunked.gradients import DIRECT_FROM
from wavalign_fast.outputs import write_whole

from . import shapes
from .published_times import PUBLISHED, Published
from .record import RESULTS, save
from .shapes import GrowthShape, HybridShape, LogprobShape, PairShape

LABEL = "model, not measured"
FP32, BF16 = 4, 2
STEP_ITEMS = 8
"""Logits that a thread adds to its sums at a time."""
WARP_LANES = 32
MOST_BLOCKS_A_ROW = 8
"""Most blocks of a cluster, on GPUs that have clusters."""
SCRATCH_BYTES = 512
"""Shared memory of a block beside its part of the row."""
PTX_INSTRUCTIONS = {
    ("row_stats", FP32): 15.6,
    ("row_stats", BF16): 14.9,
    ("row_gradient_", FP32): 13.8,
    ("row_gradient_", BF16): 15.0,
    ("hybrid_rows_", FP32): 32.5,
    ("hybrid_rows_", BF16): 32.1,
}
"""(kernel, bytes of a logit) -> instructions executed for a logit, counted on emulated PTX; bf16
gradients, no bias."""
PAGE = RESULTS.parents[1] / "docs" / "gpu_model.md"

Shape = HybridShape | LogprobShape | PairShape | GrowthShape


@dataclass(frozen=True)
class Array:
    """Memory that a kernel reads or writes."""

    bytes: int
    passes: float = 1.0
    """How often all of it is read or written."""
    between: bool = False
    """Whether it only passes data from one kernel to the next."""

    def moved(self, gpu: Gpu) -> float:
        """Bytes to and from memory under a perfect L2 cache, which keeps as much as it can hold
        from pass to pass and from kernel to kernel."""
        first = 0 if self.between else min(self.bytes, gpu.l2_bytes)
        return self.passes * max(0, self.bytes - gpu.l2_bytes) + min(1.0, self.passes) * first


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one kernel in all of its launches in a step."""

    name: str
    flops: int = 0
    """Of GEMMs."""
    exponentials: int = 0
    reads: tuple[Array, ...] = ()
    writes: tuple[Array, ...] = ()

    def seconds(self, gpu: Gpu) -> float:
        return max(self.limits(gpu).values())

    def limits(self, gpu: Gpu) -> dict[str, float]:
        """Seconds that each part of the GPU needs at its peak."""
        moved = sum(array.moved(gpu) for array in (*self.reads, *self.writes))
        return {
            "matrices": self.flops / gpu.matrix_flops,
            "memory": moved / gpu.memory_bytes,
            "exponentials": self.exponentials / gpu.special_functions,
        }


def held_on_chip(gpu: Gpu, vocab: int, item: int) -> bool:
    """Whether a row stays in shared memory from its statistics to its gradient."""
    blocks = MOST_BLOCKS_A_ROW if gpu.arch >= 90 else 1
    return math.ceil(vocab / blocks) * item <= gpu.shared_bytes - SCRATCH_BYTES


def statistics_exponentials(vocab: int) -> int:
    """One for each logit, and one for each step of the sums, which rescales them."""
    return vocab + math.ceil(vocab / STEP_ITEMS)


def chunk_heights(rows: int, vocab: int) -> list[int]:
    """Rows of each chunk under the default memory budget, where every row gets a gradient."""
    options = ChunkOptions("", DEFAULT_MEMORY_BUDGET, True, rows)
    return [part.stop - part.start for part in chunks_of(rows, vocab, FP32, options).rows]


def logits_array(rows: int, vocab: int, item: int, passes: float = 1.0) -> Array:
    """The logits of a chunk, which are written, read and overwritten before the next chunk."""
    chunk = max(chunk_heights(rows, vocab))
    return Array(chunk * vocab * item, passes * rows / chunk, between=True)


def row_stats_work(rows: int, vocab: int, item: int = FP32) -> Work:
    return Work(
        name="row_stats",
        exponentials=rows * statistics_exponentials(vocab),
        reads=(logits_array(rows, vocab, item), Array(rows * 8)),
        writes=(Array(rows * 4 * FP32),),
    )


def row_gradient_work(rows: int, vocab: int, item: int = FP32, out: int = BF16) -> Work:
    return Work(
        name="row_gradient_",
        exponentials=rows * vocab,
        reads=(logits_array(rows, vocab, item), Array(rows * (8 + 5 * FP32))),
        writes=(logits_array(rows, vocab, out),),
    )


def hybrid_rows_work(rows: int, vocab: int, gpu: Gpu, item: int = FP32, out: int = BF16) -> Work:
    passes = 1.0 if held_on_chip(gpu, vocab, item) else 2.0
    return Work(
        name="hybrid_rows_",
        exponentials=rows * (statistics_exponentials(vocab) + vocab),
        reads=(logits_array(rows, vocab, item, passes), Array(rows * (8 + 6 * FP32))),
        writes=(logits_array(rows, vocab, out), Array(rows * 5 * FP32)),
    )


def logits_product(rows: int, hidden: int, vocab: int) -> Work:
    """One GEMM for each chunk, padded to whole ``PRODUCT_ROWS``; each reads all of the weight.

    This holds where cuBLAS gives a tall GEMM the same bits as GEMMs of ``PRODUCT_ROWS`` rows.
    Elsewhere the weight is read once for every ``PRODUCT_ROWS`` rows.
    """
    heights = chunk_heights(rows, vocab)
    filled = sum(math.ceil(height / PRODUCT_ROWS) * PRODUCT_ROWS for height in heights)
    return Work(
        name="logits = h Wᵀ",
        flops=2 * filled * hidden * vocab,
        reads=(Array(rows * hidden * BF16), Array(vocab * hidden * BF16, len(heights))),
        writes=(logits_array(rows, vocab, FP32),),
    )


def gradient_products(rows: int, hidden: int, vocab: int) -> tuple[Work, ...]:
    """dH, dW and their rounding.

    dH is summed in fp32, one chunk at a time. So is dW where there are several chunks, of which the
    first one writes. With a single chunk the GEMM itself rounds dW, except for a small head.
    """
    chunks = len(chunk_heights(rows, vocab))
    operand = logits_array(rows, vocab, BF16)
    flops = 2 * rows * hidden * vocab
    weight = Array(vocab * hidden * BF16, chunks)
    hidden_rows = Array(rows * hidden * BF16)
    hidden_sums = Array(math.ceil(rows / chunks) * hidden * FP32, chunks, between=True)
    direct = chunks == 1 and vocab * hidden >= DIRECT_FROM
    head = vocab * hidden
    sums = Array(head * (BF16 if direct else FP32), between=not direct)
    of_head = Work(name="dW rounded", reads=(sums,), writes=(Array(head * BF16),))
    return (
        Work(name="dH", flops=flops, reads=(operand, weight), writes=(hidden_sums,)),
        Work(name="dH rounded", reads=(hidden_sums,), writes=(hidden_rows,)),
        Work(
            name="dW",
            flops=flops,
            reads=(operand, hidden_rows, replace(sums, passes=chunks - 1)),
            writes=(replace(sums, passes=chunks),),
        ),
        *(() if direct else (of_head,)),
    )


def in_forward(rows: int, hidden: int, vocab: int, gpu: Gpu) -> list[Work]:
    """The hybrid loss: three GEMMs, one row kernel."""
    products = gradient_products(rows, hidden, vocab)
    return [logits_product(rows, hidden, vocab), hybrid_rows_work(rows, vocab, gpu), *products]


def recomputed(rows: int, hidden: int, vocab: int) -> list[Work]:
    """Log-probs for any loss: the backward pass computes the logits a second time."""
    logits = logits_product(rows, hidden, vocab)
    products = gradient_products(rows, hidden, vocab)
    return [logits, row_stats_work(rows, vocab), logits, row_gradient_work(rows, vocab), *products]


def total(works: Sequence[Work], gpu: Gpu) -> dict[str, Any]:
    """The bound of a step, and the part of each kind of kernel."""
    seconds = {"products": 0.0, "row kernels": 0.0}
    for work in works:
        seconds["row kernels" if work.exponentials else "products"] += work.seconds(gpu)
    moved = sum(a.moved(gpu) for work in works for a in (*work.reads, *work.writes))
    return {
        "bound_s": sum(seconds.values()),
        "products_s": seconds["products"],
        "row_kernels_s": seconds["row kernels"],
        "memory_bytes": moved,
    }


def all_rows_flops(products: int, rows: int, hidden: int, vocab: int) -> int:
    return 2 * products * rows * hidden * vocab


def modelled(kind: str, shape: Shape) -> dict[str, Any]:
    """One shape on every GPU. ``others`` has four GEMMs over all positions, and nothing else."""
    hybrid = isinstance(shape, HybridShape)
    positions = shape.positions if isinstance(shape, HybridShape) else shape.live
    live, hidden, vocab = shape.live, shape.hidden, shape.vocab
    others = all_rows_flops(4, positions, hidden, vocab)
    gpus = {}
    for gpu in GPUS:
        works = in_forward(live, hidden, vocab, gpu) if hybrid else recomputed(live, hidden, vocab)
        gpus[gpu.name] = total(works, gpu) | {"others_products_s": others / gpu.matrix_flops}
    flops = all_rows_flops(3 if hybrid else 4, live, hidden, vocab)
    return {
        "kind": kind,
        "shape": asdict(shape) | {"positions": positions, "live": shape.live},
        "flops": flops,
        "others_flops": others,
        "gpus": gpus,
    }


def beside(published: Published) -> dict[str, Any]:
    """A published time beside the bounds of ours, for its shape and GPU."""
    gpu = next(gpu for gpu in GPUS if gpu.name == published.gpu)
    rows, hidden, vocab = published.rows, published.hidden, published.vocab
    flops = all_rows_flops(published.products, rows, hidden, vocab)
    return asdict(published) | {
        "flops": flops,
        "flops_per_s": flops / (published.milliseconds / 1e3),
        "their_products_s": flops / gpu.matrix_flops,
        "ours_all_rows_s": total(in_forward(rows, hidden, vocab, gpu), gpu)["bound_s"],
        "ours_half_rows_s": total(in_forward(rows // 2, hidden, vocab, gpu), gpu)["bound_s"],
        "ours_logprob_s": total(recomputed(rows, hidden, vocab), gpu)["bound_s"],
    }


def kernels() -> list[dict[str, Any]]:
    """The row kernels for a thousand rows under the paper's head.

    ``issue_s`` is not a bound: it counts each PTX instruction as one machine instruction, and the
    assembler may emit fewer or more.
    """
    rows, vocab = 1000, shapes.VITA_AUDIO.vocab
    table = []
    for gpu in GPUS:
        for work in (
            row_stats_work(rows, vocab),
            row_gradient_work(rows, vocab),
            hybrid_rows_work(rows, vocab, gpu),
        ):
            limits = work.limits(gpu)
            instructions = rows * vocab * PTX_INSTRUCTIONS[work.name, FP32]
            table.append({
                "kernel": work.name,
                "gpu": gpu.name,
                "rows": rows,
                "vocab": vocab,
                "read_bytes": sum(array.bytes * array.passes for array in work.reads),
                "written_bytes": sum(array.bytes * array.passes for array in work.writes),
                "exponentials": work.exponentials,
                "ptx_instructions": instructions,
                "limits_s": limits,
                "issue_s": instructions / WARP_LANES / gpu.warp_instructions,
            })  # fmt: skip
    return table


def record() -> dict[str, Any]:
    """The whole record."""
    kinds: dict[str, Sequence[Shape]] = {
        "hybrid": list(shapes.HYBRID.values()),
        "linear_logprob": list(shapes.LOGPROB.values()),
        "skip": list(shapes.SKIPPING.values()),
        "dpo": list(shapes.DPO.values()),
        "growth": [s for axis in shapes.AXES for s in shapes.growth(axis, quick=False)],
    }
    return {
        "benchmark": "gpu_model",
        "label": LABEL,
        "memory_budget": DEFAULT_MEMORY_BUDGET,
        "gpus": [asdict(gpu) for gpu in GPUS],
        "kernels": kernels(),
        "shapes": [
            modelled(kind, shape)
            for kind, members in kinds.items()
            for shape in members
            if shape.name != "quick"
        ],
        "published": [beside(published) for published in PUBLISHED],
    }


def main(argv: Sequence[str] | None = None) -> int:
    from .gpu_model_page import page

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", action="store_true", help="write the JSON and the page")
    args = parser.parse_args(argv)
    found = record()
    text = page(found)
    print(text, end="")
    if args.save:
        write_whole(PAGE, text.encode())
        save("gpu_model", found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
