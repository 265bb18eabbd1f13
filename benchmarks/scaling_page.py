"""The page of the scaling model: docs/scaling.md."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from . import scaling
from .memory_section import section
from .scaling import GPU, NETWORK, NODE, NVLINK, Step, Times

WORLDS = (1, 8, 64)
JUDGE_SECONDS = (0.0, 0.5, 2.0, 10.0)
JUDGES = 16
"""Judgements at once for each GPU."""
HEAD_ROWS = (500, 2000, 8000)


def page(measured: dict[str, Any], memory: dict[str, Any]) -> str:
    """The whole page, from the records of ``scaling.measured`` and of ``bench_memory``."""
    step = Step()
    times = [scaling.step_times(gpus, step) for gpus in WORLDS]
    parts = [
        _introduction(step),
        _in_short(times, step),
        "## Time of a step\n" + _steps(times),
        _notes(step),
        f"## What a judge costs\n{_judge_text()}" + _judges(times, step),
        "## Several nodes: one copy each, or one over all\n" + _nodes(step),
        "## When to shard the output head\n" + _heads(),
        section(memory),
        _sources(measured),
    ]
    return _filled("\n".join(parts))


def _filled(text: str) -> str:
    """Fills paragraphs and items of lists to whole lines; tables and headings stay."""
    found: list[str] = []
    for block in re.split(r"\n\n+|\n(?=- )|(?<=\n)(?=#)", text):
        block = block.strip("\n")
        if block.startswith(("|", "#")):
            found.append(block + "\n")
        elif block:
            item = block.startswith("- ")
            if item and found and found[-1].startswith("- "):
                found[-1] = found[-1].rstrip("\n")
            hanging = "  " if item else ""
            found.append(
                textwrap.fill(" ".join(block.split()), 100, subsequent_indent=hanging) + "\n"
            )
    return "\n".join(found)


def _introduction(step: Step) -> str:
    return f"""# How many GPUs to rent: a calculation, not a measurement

Written by `python -m benchmarks.scaling --save`. **No GPU has run any of this.** Operations and
bytes of a step are counted from the model's sizes and divided by published rates of {GPU.name} GPUs
and their links. Expect real steps to be longer, and measure one before you rent many.

The step: full fine-tuning of the paper's model (7.73 B weights, V 168 072), {step.prompts}
prompts × {step.group} completions of {step.new_tokens} tokens, a quarter of them text with the
policy loss, and {step.demonstrations} demonstrations; activations recomputed. The same step on
every number of GPUs. `wavalign-fast plan` says whether it fits into memory: on one GPU of 80 GiB
only with bf16 weights and an 8-bit optimizer, which takes as long.
"""


def _in_short(times: Sequence[Times], step: Step) -> str:
    one, eight, many = times
    slow, overlapped = scaling.judged(eight, step, 2.0, JUDGES)
    return f"""## In short

- **One node of {NODE} GPUs is the place to start**: {one.total / eight.total:.1f} times as fast as
one GPU, and a step costs {_gpu_seconds(eight) / _gpu_seconds(one):.1f} times the GPU time.
- **{many.gpus} GPUs are {eight.total / many.total:.1f} times as fast as {NODE}** and cost
{_gpu_seconds(many) / _gpu_seconds(eight):.1f} times the GPU time: decoding reads all weights for
every token, however few completions a GPU has. Rent them for larger steps, not for this one.
- **A slow judge wastes GPUs**: at 2 s a judgement, {JUDGES} at once for each GPU, {NODE} GPUs wait
{slow - eight.total:.1f} s of {slow:.1f} s. Judging while others decode would save
{slow - overlapped:.1f} s; the trainer does not do that.
- Keep `parallel.head: gathered` where NVLink connects the GPUs.
"""


def _steps(times: Sequence[Times]) -> str:
    heading = ["GPUs", "rollout", "copy", "forward + backward", "of it links need", "optimizer"]
    heading += ["step", "GPU-hours, 1000 steps", "bound by"]
    lines = [
        [
            t.gpus, _s(t.rollout), _s(t.copy), _s(t.training), _s(t.communication),
            _s(t.optimizer), _s(t.total), f"{_gpu_seconds(t) / 3.6:.0f}", t.bound,
        ]
        for t in times
    ]  # fmt: skip
    return _table(heading, lines)


def _notes(step: Step) -> str:
    floor = 1000 * scaling.decoding(0, Step(new_tokens=1), scaling.sizes()[1], 0)
    return f"""
Seconds, without a judge. Links work while the GPU computes (FSDP2's prefetch), so the slower of the
two counts. One token takes at least {floor:.1f} ms, the time to read 15.5 GB of weights: that is
{_s(step.new_tokens * floor / 1000)} s for {step.new_tokens} tokens on any number of GPUs.
"""


def _judge_text() -> str:
    return f"""
Seconds of a step; {JUDGES} judgements at once for each GPU. "Overlapped" is what would be left if
answers were judged while others still decode; the trainer judges after the rollouts.
"""


def _judges(times: Sequence[Times], step: Step) -> str:
    heading = ["a judgement"]
    heading += [text for t in times for text in (_gpus(t), "waiting", "overlapped")]
    lines = []
    for seconds in JUDGE_SECONDS:
        line = [f"{seconds:g} s"]
        for t in times:
            total, overlapped = scaling.judged(t, step, seconds, JUDGES)
            line += [_s(total), f"{1 - t.total / total:.0%}", _s(overlapped)]
        lines.append(line)
    return _table(heading, lines)


def _nodes(step: Step) -> str:
    heading = ["64 GPUs", "links need", "arithmetic needs", "step"]
    lines = []
    for name, hybrid in (("`parallel.replicate: 8`, a copy in each node", True),
                         ("`parallel.replicate: 1`, one copy over all", False)):  # fmt: skip
        t = scaling.step_times(64, step, hybrid=hybrid)
        lines.append([name, f"{_s(t.communication)} s", f"{_s(t.compute)} s", f"{_s(t.total)} s"])
    return _table(heading, lines)


def _heads() -> str:
    text = """
Milliseconds that links need for the output head in one micro-batch. Gathered, the head is sent,
whatever the number of rows; sharded (`parallel.head: sharded`), the rows are. "Rows" are positions
with loss on a GPU.
"""
    heading = ["GPUs, link", "rows", "gathered", "sharded", "about level at"]
    lines = []
    links = ((8, "NVLink", NVLINK), (8, "network", NETWORK), (64, "network", NETWORK))
    for ranks, name, link in links:
        for rows in HEAD_ROWS:
            found = scaling.head_seconds(ranks, rows, link)
            both = _ms(found["gathered"]), _ms(found["sharded"])
            lines.append([f"{ranks}, {name}", rows, *both, f"{scaling.level_rows(ranks)} rows"])
    seconds = scaling.micro_batch_seconds()
    return f"""{text}{_table(heading, lines)}
The arithmetic of a micro-batch takes {seconds:.1f} s, so with NVLink neither matters. Shard the
head between GPUs without NVLink, or where few rows carry loss; not over many nodes.
"""


def _sources(measured: dict[str, Any]) -> str:
    on = measured["machine"]
    return f"""## What is counted, assumed and measured

- **Counted**: model flops by `train/flops.py`, which tests hold to torch's own count; bytes of
  weights (bf16 gathered twice, fp32 gradients reduced once a micro-batch) and of the cache.
- **Published**: {GPU.matrix_flops / 1e12:.0f} TFLOP/s bf16 and {GPU.memory_bytes / 1e12:.2f} TB/s
({GPU.source}); NVLink at {NVLINK / 1e9:.0f} GB/s, 80% of the 450 GB/s a direction of the same data
sheet; network at {NETWORK / 1e9:.0f} GB/s, 90% of a 400 Gb/s adapter for each GPU (NVIDIA DGX H100
data sheet).
- **Assumed**: {scaling.TRAINING_SHARE:.0%} of the peak in forward and backward pass. nanotron
published 30% for a 1B Llama on 8 H100 (huggingface.co/nanotron/old_bench, dp-4_tp-2); a published
kernel for a large head reaches {scaling.gemm_share():.0%} (Liger-Kernel). And
{scaling.BANDWIDTH_SHARE:.0%} of the memory's peak in decoding, with CUDA graphs. All completions
reach the full length.
- **Measured, on a CPU** ({on["cpu"]}, {on["threads"]} thread, {on["date"]}): drawing the random
numbers of a step's completions takes {1e3 * measured["draws_s"]:.0f} ms of CPU time and dealing its
rows to {NODE} GPUs {1e3 * measured["dealing_s"]:.0f} ms. Neither matters beside seconds.
- **Left out**: launches, host syncs, checkpoints, evaluation, and the time that
ranks wait for each other.
"""


def _gpus(times: Times) -> str:
    return f"{times.gpus} GPU" + "s" * (times.gpus > 1)


def _gpu_seconds(times: Times) -> float:
    return times.gpus * times.total


def _table(heading: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [heading, ["---"] + ["---:"] * (len(heading) - 1), *lines]
    return "\n" + "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def _s(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"
