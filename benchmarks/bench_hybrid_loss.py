"""The hybrid step on a large head: ours, the released order of operations, and three GEMMs.

    python -m benchmarks.bench_hybrid_loss [--quick] [--rounds N] [--save]

Forward and backward to hidden states and head. Checks ours against float64 first; a failed check
ends with exit code 1, a timing never does.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

import wavalign_fast as wf
from benchmarks import timing
from benchmarks.released import released_step
from benchmarks.shapes import PAPER, QUICK, HybridShape

RL_WEIGHT = 0.5
LOGP_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-2
"""Of the largest gradient: dlogits are bf16 operands, with a relative rounding of 2^-8."""


class Step:
    """Random operands and tables of one step of a shape, bf16."""

    def __init__(self, shape: HybridShape) -> None:
        g = torch.Generator().manual_seed(0)
        self.shape = shape
        rows, length = shape.rollouts + shape.anchors, shape.length
        self.hidden = torch.randn(rows, length, shape.hidden, generator=g).bfloat16()
        self.weight = torch.empty(shape.vocab, shape.hidden, dtype=torch.bfloat16)
        self.weight.normal_(0.0, 4.0 / shape.hidden**0.5, generator=g)
        self.layout = wf.ModalityLayout(
            vocab_size=shape.vocab,
            speech=((shape.speech_start, shape.vocab),),
            boundary=shape.boundary,
        )
        prompt = length - shape.text_tokens - shape.speech_tokens
        text = torch.randint(0, shape.boundary[0], (rows, length), generator=g)
        speech = torch.randint(shape.speech_start, shape.vocab, (rows, length), generator=g)
        self.input_ids = text
        self.input_ids[:, prompt + shape.text_tokens :] = speech[:, prompt + shape.text_tokens :]
        self.labels = torch.full_like(text, -100)
        anchor_start = length - shape.anchor_tokens
        self.labels[shape.rollouts :, anchor_start:] = text[shape.rollouts :, anchor_start:]
        self.batch = wf.HybridBatch.from_padded(
            self.input_ids,
            torch.ones(shape.rollouts, shape.text_tokens + shape.speech_tokens),
            self.labels,
            torch.tensor([[1.0, 5.0, 2.0, 4.0, 1.0, 3.0, 5.0, 2.0]])[:, : shape.rollouts],
            torch.tensor([prompt]),
        )
        self.objective = wf.HybridObjective(self.layout, gate=RL_WEIGHT)

    def leaves(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()

    def ours(self) -> tuple[wf.HybridOutput, torch.Tensor, torch.Tensor]:
        hidden, weight = self.leaves()
        out = self.objective(hidden, weight, self.batch)
        return (out, *torch.autograd.grad(out.loss, (hidden, weight)))

    def released(self) -> tuple[torch.Tensor, ...]:
        hidden, weight = self.leaves()
        tables = (self.input_ids, self.labels, self.batch, self.layout, RL_WEIGHT)
        return torch.autograd.grad(released_step(hidden, weight, *tables), (hidden, weight))

    def three_gemms(self) -> tuple[torch.Tensor, ...]:
        """What no exact method can do without: logits, dH and dW of the live rows."""
        rows = self.hidden.flatten(0, 1)[: self.shape.live]
        logits = rows @ self.weight.T
        return logits @ self.weight, logits.T @ rows


def check(step: Step) -> dict[str, float]:
    """Largest errors against float64 on the same bf16 operands, computed in vocabulary slices."""
    out, grad_hidden, grad_weight = step.ours()
    live = torch.nonzero(out.logp).squeeze(-1)
    rows = step.hidden.flatten(0, 1)[live].double()
    targets = step.batch.targets[live]
    slices = [slice(v, v + 16384) for v in range(0, step.shape.vocab, 16384)]
    lse = torch.stack([(rows @ step.weight[s].double().T).logsumexp(-1) for s in slices])
    lse = lse.logsumexp(0)
    truth = (rows * step.weight[targets].double()).sum(-1) - lse

    logp = truth.clone().requires_grad_()
    table = torch.zeros(step.batch.targets.shape, dtype=torch.float64).index_put((live,), logp)
    scores = wf.LogProb(table, None, table)
    plan = step.objective.plan(step.batch)
    loss = step.objective.combine(step.batch, plan, scores, torch.tensor(RL_WEIGHT)).loss
    (g,) = torch.autograd.grad(loss, logp)
    want_hidden = g[:, None] * step.weight[targets].double()
    worst_weight = largest = 0.0
    for s in slices:
        block = step.weight[s].double()
        p = torch.exp(rows @ block.T - lse[:, None]) * g[:, None]  # [live, slice]
        want_hidden -= p @ block
        inside = (targets >= s.start) & (targets < s.start + block.shape[0])
        want = -(p.T @ rows).index_add_(0, targets[inside] - s.start, -(g[:, None] * rows)[inside])
        worst_weight = max(worst_weight, (grad_weight[s].double() - want).abs().max().item())
        largest = max(largest, want.abs().max().item())
    hidden_error = (grad_hidden.flatten(0, 1)[live].double() - want_hidden).abs().max()
    return {
        "logp_max_error": (out.logp[live] - truth).abs().max().item(),
        "grad_hidden_max_error": (hidden_error / want_hidden.abs().max()).item(),
        "grad_weight_max_error": worst_weight / largest,
    }


def measure(step: Step, rounds: int) -> dict[str, Any]:
    """Times and memory of the three sides."""
    sides: dict[str, Callable[[], Any]] = {
        "wavalign_fast": step.ours,
        "released": step.released,
        "three_gemms": step.three_gemms,
    }
    gradients = (step.hidden.numel() + step.weight.numel()) * 2
    sides_report = timing.paired(sides, rounds=rounds)
    for name, run in sides.items():
        peak = timing.peak_extra_bytes(run)
        extra = None if peak is None else max(0, peak - gradients)
        sides_report[name]["extra_bytes_beyond_gradients"] = extra
    return sides_report


def table(shape: HybridShape, report: dict[str, Any]) -> str:
    lines = [
        f"{shape.name}: H {shape.hidden}, V {shape.vocab}, {shape.positions} positions, "
        f"{shape.live} live",
        f"{'':16}{'wall s':>9}{'CPU s':>9}{'it / ours':>11}{'extra MB':>11}",
    ]
    for name, side in report.items():
        ratio = side["wall_ratio_to"].get("wavalign_fast")
        extra = side["extra_bytes_beyond_gradients"]
        lines.append(
            f"{name:16}{side['wall_s']:9.3f}{side['cpu_s']:9.3f}"
            f"{'' if ratio is None else f'{ratio:.2f}':>11}"
            f"{'?' if extra is None else f'{extra / 2**20:.0f}':>11}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small head, for continuous integration"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/hybrid_loss.json")
    arguments = parser.parse_args()
    shape = QUICK if arguments.quick else PAPER
    machine = timing.machine()
    step = Step(shape)
    errors = check(step)
    print("errors against float64:", ", ".join(f"{k} {v:.1e}" for k, v in errors.items()))
    passed = errors["logp_max_error"] <= LOGP_TOLERANCE and all(
        v <= GRADIENT_TOLERANCE for k, v in errors.items() if k.startswith("grad")
    )
    if not passed:
        print("FAILED: the results are wrong, nothing is timed", file=sys.stderr)
        return 1
    report = measure(step, arguments.rounds)
    print(table(shape, report))
    if arguments.save:
        record = {"shape": vars(shape), "machine": machine, "errors": errors, "sides": report}
        print(f"wrote {timing.save('hybrid_loss', record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
