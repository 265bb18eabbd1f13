"""The section of docs/scaling.md on memory, from results/memory.json."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

GIB = 2**30


class Designed(NamedTuple):
    """GiB that the design expected, ``None`` for what it left out, and why ours differs."""

    lasting: float | None
    training: float | None
    rollout: float | None
    why: str


DESIGN = {
    "1 GPU, fp32 weights": Designed(
        115, None, None, "it does not fit, so the passes are not traced"
    ),
    "1 GPU, bf16 weights, adamw8bit": Designed(
        43, 55, 36,
        "the design's peak was an estimate, this one is traced",
    ),
    "1 GPU, LoRA r 64 over bf16": Designed(
        17, 25, 24,
        "peft gives float32 adapters float32 copies of their inputs, which the backward pass of a "
        "layer keeps; a rollout has no gradients",
    ),
    "4 GPUs": Designed(
        28.8, 39, 43,
        "the last norm and the head are a unit of their own here, and the logits, which the design "
        "added, are gone when the peak comes",
    ),
    "4 GPUs, head sharded": Designed(
        None, 37, None,
        "the design reduced the head's gradient last, with the embedding's; now it comes first, "
        "when few gradients are there, and the peak is later",
    ),
    "4 GPUs, several micro-batches": Designed(
        None, None, None, "the design had one: later ones keep the shards of the gradients beside"
    ),
    "4 GPUs, copy kept": Designed(
        None, None, None, "`rollout.keep_copy: true`; as in the design the default frees it"
    ),
    "4 GPUs, reference policy": Designed(32.4, None, None, ""),
    "8 GPUs": Designed(14.4, 26, 32, "as with 4 GPUs"),
}  # fmt: skip


def section(record: dict[str, Any]) -> str:
    """The text, from a record of ``bench_memory``."""
    cases = {case["name"]: case for case in record["cases"]}
    heading = ["", "lasting", "design", "forward + backward", "design", "rollout", "design"]
    lines = [_row(heading), _row(["---", *["---:"] * 6])]
    lines += [_row(_cells(case, DESIGN[name])) for name, case in cases.items()]
    heads = ("4 GPUs", "4 GPUs, head sharded")
    whole, sliced = (_tensors(cases[name], "training") or math.nan for name in heads)
    saved = round(whole - sliced, 1) + 0.0  # no minus before a zero
    reasons = "\n".join(f"- {name}: {d.why}." for name, d in DESIGN.items() if d.why)
    return f"""## What a GPU must hold

GiB of tensors on the busiest rank for the same model, by `wavalign-fast plan`'s arithmetic and its
run on tensors without memory: a micro-batch of 16 384 tokens per GPU with 4000 live rows,
activations recomputed, bf16 compute over fp32 weights and AdamW unless the row says otherwise, 64
rollouts of 2048 tokens per GPU. "Lasting" is weights, gradients and moments. CUDA, NCCL and gaps
between tensors come on top, about 2 GiB and 5%. "Design" is what was calculated with torch's own
tracker before the trainer was written. Written from `benchmarks/results/memory.json`
(`python -m benchmarks.bench_memory --save`).

{chr(10).join(lines)}

A sharded head saves {saved:.1f} GiB of the forward and backward pass on 4 GPUs.
Why numbers differ from the design:

{reasons}
"""


def _cells(case: dict[str, Any], designed: Designed) -> list[str]:
    found = (case["lasting_bytes"] / GIB, _tensors(case, "training"), _tensors(case, "rollout"))
    cells = [case["name"]]
    for own, other in zip(found, designed, strict=False):
        cells += ["–" if own is None else f"{own:.1f}", "–" if other is None else f"{other:g}"]
    return cells


def _tensors(case: dict[str, Any], phase: str) -> float | None:
    """GiB of a phase; ``None`` if it was not traced."""
    parts = case["phases"].get(phase)
    return None if parts is None else sum(parts.values()) / GIB


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
