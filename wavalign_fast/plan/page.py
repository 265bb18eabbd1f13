"""The estimate of a run as a table for people and as JSON for programs."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from wavalign_fast.plan.advice import Change
from wavalign_fast.plan.estimate import Estimate, Phase

WIDTH = 80
"""The widest line; a narrower terminal gets narrower text."""
LABEL = 34
COLUMN = 12
NOTES = (
    "Arithmetic and a run on tensors without memory; no GPU was used. Rows are taken to be as long "
    "as they may be and to carry loss on every token of a completion. A round 2 GiB for CUDA and "
    "NCCL and 5% for gaps between tensors are from practice: measure with one step."
)
VLLM_NOTES = {
    "server": "rollout: by a vLLM server, whose memory is not counted",
    "in_process": "rollout: by vLLM on this GPU, whose share of the memory "
    "(rollout.vllm.options.gpu_memory_utilization) is not counted: it is needed beside",
}


def table(estimate: Estimate, *, title: str, gpu_gib: float, changes: Sequence[Change] = ()) -> str:
    """Returns the page for a terminal, at most 80 columns wide."""
    run = estimate.run
    head = [
        f"{title}: {_count(estimate.parameters)} weights in {_name(run.weights_dtype)}, "
        f"{run.optimizer}, {_ranks(run.replicate, run.shard)}"
        + (f", {_count(estimate.trained)} of adapters trained" if run.lora_rank else "")
        + (", head sharded" if run.head == "sharded" and run.world > 1 else ""),
        f"micro-batch: {run.rows} rows × {run.length} tokens, {run.live} with loss"
        + (", activations recomputed" if run.checkpointing else ""),
    ]
    if run.sampled:
        sampled = f"{run.sampled} completions × {run.sampled_length} tokens at once"
        head.append(f"{run.sampling_phase}: {sampled}")
    if run.vllm is not None:
        head.append(VLLM_NOTES[run.vllm])
    lines = [part for line in head for part in _folded(line)]
    lines += ["", *_parts(estimate.phases), "", _verdict(estimate, gpu_gib)]
    if changes:
        lines += ["", *_changes(changes, gpu_gib)]
    lines += ["", *textwrap.wrap(NOTES, _width())]
    return "\n".join(lines)


def as_json(estimate: Estimate, *, gpu_gib: float, changes: Sequence[Change] = ()) -> str:
    """Returns the estimate in bytes, as one JSON object."""
    gpu = gpu_gib * 2**30
    return json.dumps(
        _record(estimate)
        | {
            "gpu_bytes": gpu,
            "fits": estimate.needed <= gpu,
            "changes": [
                {
                    "words": list(change.words),
                    "needed_bytes": change.estimate.needed,
                    "fits": change.estimate.needed <= gpu,
                }
                for change in changes
            ],
        },
        indent=2,
    )


def _record(estimate: Estimate) -> dict[str, Any]:
    return {
        "ranks": estimate.run.world,
        "parameters": estimate.parameters,
        "trained_parameters": estimate.trained,
        "needed_bytes": estimate.needed,
        "phases": {
            phase.name: {
                "tensors_bytes": phase.parts,
                "needed_bytes": phase.needed,
            }
            for phase in estimate.phases
        },
    }


def _parts(phases: Sequence[Phase]) -> list[str]:
    """One line for each kind of tensor, one column for each phase."""
    names = list(dict.fromkeys(name for phase in phases for name in phase.parts))
    rows = [(name, [phase.parts.get(name) for phase in phases]) for name in names]
    lines = [_line("GiB on the busiest rank", [phase.name for phase in phases])]
    lines += [_line(name, [_gib(size) for size in sizes]) for name, sizes in rows]
    lines.append(_line("CUDA, NCCL, gaps", [_gib(phase.beside) for phase in phases]))
    lines.append(_line("needed", [_gib(phase.needed) for phase in phases]))
    return lines


def _verdict(estimate: Estimate, gpu_gib: float) -> str:
    needed, phase = estimate.needed, estimate.fullest.name
    # Without a column for training its trace was left out: more would be needed still.
    least = "" if any(p.name == "training" for p in estimate.phases) else "at least "
    if needed <= gpu_gib * 2**30:
        left = _gib(round(gpu_gib * 2**30) - needed)
        return f"FITS in {gpu_gib:g} GiB: {_gib(needed)} needed in {phase}, {left} left"
    return f"DOES NOT FIT in {gpu_gib:g} GiB: {least}{_gib(needed)} needed in {phase}"


def _changes(changes: Sequence[Change], gpu_gib: float) -> list[str]:
    lines = ["What helps, each alone unless written together:"]
    for change in changes:
        fits = change.estimate.needed <= gpu_gib * 2**30
        found = f"{_gib(change.estimate.needed)} GiB" + (": fits" if fits else "")
        lines += _folded(f"  {' '.join(change.words)}  →  {found}")
    return lines


def _folded(line: str) -> list[str]:
    """Cuts a line at spaces; what follows is indented."""
    return textwrap.wrap(line, _width(), subsequent_indent="    ")


def _line(label: str, values: Sequence[str]) -> str:
    return f"{label:<{LABEL}}" + "".join(f"{value:>{COLUMN}}" for value in values)


def _gib(size: int | None) -> str:
    """GiB with one digit; a dash for what is not there."""
    return "–" if size is None else f"{size / 2**30:.1f}"


def _count(weights: int) -> str:
    return f"{weights / 1e9:.2f} B" if weights >= 1e8 else f"{weights / 1e6:.2f} M"


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _ranks(replicate: int, shard: int) -> str:
    if replicate * shard == 1:
        return "1 rank"
    copies = f" ({replicate} copies)" if replicate > 1 else ""
    return f"{replicate * shard} ranks, each copy on {shard}{copies}"


def _width() -> int:
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
