"""The page of the GPU model: docs/gpu_model.md."""

from collections.abc import Iterable, Sequence
from typing import Any

from wavalign_fast.gpu_specifications import GPUS

NAMES = [gpu.name for gpu in GPUS]

INTRODUCTION = """# What a GPU can do at best: model, not measured

Written by `python -m benchmarks.gpu_model --save`. No GPU was involved. A time on this page is a
**lower bound**. It assumes GEMMs at the data sheet's bf16 peak, memory at its peak, every kernel at
the slower of its limits, a perfect cache, free launches, and kernels one after the other. Real
GEMMs reach two thirds to three quarters of the peak, and a launch takes microseconds. So real times
are longer, for small heads many times longer, and only a measurement can say by how much. **A
measured time divided by a bound is not a speed-up.**

The counts stand on firmer ground: operations of the GEMMs, bytes and exponentials of the row
kernels. Tests compare those of the row kernels with the kernels themselves, run on the CPU. The
logits of a chunk count as one GEMM. That is what runs where cuBLAS gives a tall GEMM the same bits
as GEMMs of 256 rows, which is tried on first use. Elsewhere the head is read once for every 256
rows.
"""

HYBRID = """## The hybrid step: three GEMMs on live rows against four on all rows

Model, not measured. "Ours" is the bound of the whole step in milliseconds, row kernel included.
"4 on all" counts four GEMMs over all positions and nothing else. They are those of a method that
computes the log-prob of every position and recomputes its logits in the backward pass.
"""

LOGPROB = """## Log-probs for any loss, and preference pairs: four GEMMs

Model, not measured: milliseconds of forward and backward pass, row kernels included. Every row is
live, so ours has as many GEMMs as the rivals that recompute the logits.
"""

KERNELS = """## The row kernels

Model, not measured: a thousand rows of fp32 logits under the paper's head (V 168072), bf16
gradients, and the milliseconds that memory and the special function units need for them.
`hybrid_rows_` reads a row once where the shared memory of a cluster holds it (sm_90 and later), and
twice elsewhere. "Instructions" are the PTX instructions executed for a logit, on average. The time
to issue them is not a bound, because the assembler may emit fewer or more machine instructions.
Where it exceeds the time of memory, expect instruction issue to be the limit.
"""

PUBLISHED = """## Beside published times

Times by others, on their GPUs and with their settings: forward and backward over all rows. The
milliseconds to the right of them are of this model, not measured: their GEMMs alone at the peak,
and bounds of ours for the same shape. A bound is not a time: a published figure includes everything
that a bound leaves out.
"""


def page(record: dict[str, Any]) -> str:
    """The whole page, from what ``gpu_model.record`` gives."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for entry in record["shapes"]:
        by_kind.setdefault(entry["kind"], []).append(entry)
    rows = [
        entry for kind in ("linear_logprob", "skip", "dpo", "growth") for entry in by_kind[kind]
    ]
    budget = record["memory_budget"] // 2**20
    parts = [
        INTRODUCTION,
        f"A chunk of logits takes at most {budget} MiB, the default memory budget.\n",
        HYBRID + _hybrid(by_kind["hybrid"]),
        LOGPROB + _logprob(rows),
        KERNELS + _kernels(record["kernels"]),
        PUBLISHED + _published(record["published"]),
        "## Peaks\n" + _peaks(record["gpus"]),
    ]
    return "\n".join(parts)


def _hybrid(entries: Iterable[dict[str, Any]]) -> str:
    heading = ["head", "H", "V", "live of all", "TFLOP, ours", "4 on all", "fewer"]
    heading += [text for name in NAMES for text in (f"{name}: ours", "4 on all")]
    lines = []
    for entry in entries:
        shape = entry["shape"]
        line = [shape["title"], shape["hidden"], shape["vocab"]]
        line += [f"{shape['live']} of {shape['positions']}"]
        line += [_tera(entry["flops"]), _tera(entry["others_flops"])]
        line += [f"{entry['others_flops'] / entry['flops']:.1f}×"]
        for name in NAMES:
            gpu = entry["gpus"][name]
            line += [_ms(gpu["bound_s"]), _ms(gpu["others_products_s"])]
        lines.append(line)
    return _table(heading, lines)


def _logprob(entries: Iterable[dict[str, Any]]) -> str:
    heading = ["shape", "benchmark", "rows", "H", "V", "TFLOP", *NAMES]
    lines = []
    for entry in entries:
        shape = entry["shape"]
        line = [shape["title"], entry["kind"], shape["live"], shape["hidden"], shape["vocab"]]
        line += [_tera(entry["flops"])]
        lines.append([*line, *(_ms(entry["gpus"][name]["bound_s"]) for name in NAMES)])
    return _table(heading, lines)


def _kernels(entries: Iterable[dict[str, Any]]) -> str:
    heading = ["kernel", "GPU", "read", "written", "exponentials", "instructions", "memory"]
    heading += ["exponentials", "issue"]
    lines = []
    for entry in entries:
        limits = entry["limits_s"]
        instructions = entry["ptx_instructions"] / (entry["rows"] * entry["vocab"])
        lines.append([
            f"`{entry['kernel']}`", entry["gpu"],
            f"{entry['read_bytes'] / 1e6:.0f} MB", f"{entry['written_bytes'] / 1e6:.1f} MB",
            f"{entry['exponentials'] / 1e6:.0f} M",
            f"{instructions:.1f}", f"{_ms(limits['memory'])} ms",
            f"{_ms(limits['exponentials'])} ms", f"{_ms(entry['issue_s'])} ms",
        ])  # fmt: skip
    return _table(heading, lines)


def _published(entries: Iterable[dict[str, Any]]) -> str:
    heading = ["who", "GPU", "rows", "H", "V", "GEMMs", "published", "of the peak"]
    heading += ["their GEMMs at the peak", "ours, 3 on all rows", "ours, half of the rows live"]
    heading += ["ours, log-probs (4)", "source"]
    lines = []
    for entry in entries:
        peak = next(gpu.matrix_flops for gpu in GPUS if gpu.name == entry["gpu"])
        lines.append([
            entry["who"], entry["gpu"], entry["rows"], entry["hidden"], entry["vocab"],
            entry["products"], f"{entry['milliseconds']:.1f} ms",
            f"{entry['flops_per_s'] / peak:.0%}", _ms(entry["their_products_s"]),
            _ms(entry["ours_all_rows_s"]), _ms(entry["ours_half_rows_s"]),
            _ms(entry["ours_logprob_s"]), entry["source"],
        ])  # fmt: skip
    return _table(heading, lines)


def _peaks(gpus: Iterable[dict[str, Any]]) -> str:
    heading = ["GPU", "bf16 GEMM", "fp32", "memory", "multiprocessors", "L2", "source"]
    lines = [
        [
            gpu["name"], f"{gpu['matrix_flops'] / 1e12:.0f} TFLOP/s",
            f"{gpu['vector_flops'] / 1e12:.3g} TFLOP/s",
            f"{gpu['memory_bytes'] / 1e9:.0f} GB/s", gpu["multiprocessors"],
            f"{gpu['l2_bytes'] / 2**20:.0f} MiB",
            gpu["source"],
        ]
        for gpu in gpus
    ]  # fmt: skip
    return _table(heading, lines)


def _table(heading: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [heading, ["---"] + ["---:"] * (len(heading) - 1), *lines]
    return "\n" + "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def _tera(flops: float) -> str:
    return _digits(flops / 1e12)


def _ms(seconds: float) -> str:
    return _digits(seconds * 1e3)


def _digits(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
