"""The hybrid step on a large head: ours, the released order of operations, and rivals.

    python -m benchmarks.bench_hybrid_loss [--quick] [--shape NAME] [--dtype bf16] [--save]

Times forward and backward passes to hidden states and head. Every side is checked against float64
first. The exit code is 1 if ours fails the check; timings do not affect it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import wavalign_fast as wf

from .bench_linear_logprob import random_head
from .case import Case, Side, provider_sides, run_cases
from .options import DTYPES, Options, parse
from .released import hybrid_loss, released_step
from .shapes import HYBRID, PAPER, HybridShape
from .truth import Result, Truth, truth_of

NAME = "hybrid_loss"
RL_WEIGHT = 0.4
"""Not one half, which would hide a swap of the two losses."""
REWARDS = (1.0, 5.0, 2.0, 4.0, 1.0, 3.0, 5.0, 2.0)


class Step:
    """Random operands and tables of one step of a shape."""

    def __init__(self, shape: HybridShape, dtype: torch.dtype, device: str = "cpu") -> None:
        g = torch.Generator().manual_seed(0)
        self.shape = shape
        rows, length = shape.rollouts + shape.anchors, shape.length
        self.hidden = torch.randn(rows, length, shape.hidden, generator=g).to(device, dtype)
        self.weight = random_head(shape.vocab, shape.hidden, dtype, device, g)
        completion = shape.text_tokens + shape.speech_tokens
        self.prompt = length - completion
        first_special = min(shape.speech[0], *shape.boundary) if shape.boundary else shape.speech[0]
        ids = torch.randint(0, first_special, (rows, length), generator=g)
        speech = torch.randint(*shape.speech, (rows, length), generator=g)
        spoken = slice(self.prompt + shape.text_tokens, None)
        ids[:, spoken] = speech[:, spoken]
        self.labels = torch.full_like(ids, -100)
        labelled = slice(length - shape.anchor_tokens, None)
        self.labels[shape.rollouts :, labelled] = ids[shape.rollouts :, labelled]
        self.rewards = torch.tensor([REWARDS] * shape.prompts, device=device)
        if self.rewards.numel() != shape.rollouts:
            raise ValueError(
                f"{shape.name}: got {shape.rollouts} rollouts, want {self.rewards.numel()}"
            )
        self.input_ids, self.labels = ids.to(device), self.labels.to(device)
        position = torch.arange(1, length, device=device).expand(shape.rollouts, -1)
        self.completion = position >= self.prompt
        self.policy_mask = self.completion & (position < self.prompt + shape.text_tokens)
        self.batch = wf.HybridBatch.from_padded(
            self.input_ids,
            torch.ones(shape.rollouts, completion, device=device),
            self.labels,
            self.rewards,
            torch.full((shape.prompts,), self.prompt, device=device),
        )

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()

    def live(self) -> Tensor:
        """Flat indices of the positions that carry loss: state t predicts id t + 1."""
        marked = torch.zeros_like(self.labels, dtype=torch.bool)
        marked[: self.shape.rollouts, :-1] = self.policy_mask
        marked[self.shape.rollouts :, :-1] = self.labels[self.shape.rollouts :, 1:] != -100
        return torch.nonzero(marked.flatten()).squeeze(-1)

    def objective(self, backend: str) -> wf.HybridObjective:
        layout = wf.ModalityLayout(
            vocab_size=self.shape.vocab, speech=(self.shape.speech,), boundary=self.shape.boundary
        )
        # As a trainer does, which knows the number: a GPU step then needs no host sync.
        live_rows = None if backend == "cpu" else len(self.live())
        options = wf.LossOptions(backend=backend, live_rows=live_rows)
        return wf.HybridObjective(layout, gate=RL_WEIGHT, options=options)

    def ours(self, backend: str) -> Callable[[], Result]:
        objective = self.objective(backend)

        def run() -> Result:
            hidden, weight = self.leaves()
            out = objective(hidden, weight, self.batch)
            grads = torch.autograd.grad(out.loss, (hidden, weight))
            return _result({"loss": out.loss.detach(), "logp": out.logp}, *grads)

        return run

    def released(self) -> Result:
        hidden, weight = self.leaves()
        loss = released_step(
            hidden,
            weight,
            self.input_ids,
            self.labels,
            completion=self.completion,
            policy_mask=self.policy_mask,
            rewards=self.rewards,
            rl_weight=RL_WEIGHT,
        )
        return _result({"loss": loss.detach()}, *torch.autograd.grad(loss, (hidden, weight)))

    def provider(self, calls: Any) -> Callable[[], Result] | None:
        """A step made of a library's GRPO on completions and its log-probs of labelled tokens."""
        if calls.grpo is None:
            return None
        rollouts, first = self.shape.rollouts, self.prompt - 1
        labelled = self.labels[rollouts:, 1:] != -100
        targets = self.labels[rollouts:, 1:][labelled]
        ids = self.input_ids[:rollouts, first + 1 :].contiguous()
        mask = self.policy_mask[:, first:].float()
        per_row = labelled.sum(1, keepdim=True).expand_as(labelled)[labelled]

        def run() -> Result:
            hidden, weight = self.leaves()
            policy = calls.grpo(hidden[:rollouts, first:-1], weight, ids, mask, self.rewards)
            logp = calls.logp(hidden[rollouts:, :-1][labelled], weight, targets)
            anchor = -(logp / per_row).sum() / labelled.shape[0]
            loss = RL_WEIGHT * policy + (1 - RL_WEIGHT) * anchor
            grads = torch.autograd.grad(loss, (hidden, weight))
            return _result({"loss": loss.detach()}, *grads)

        return run

    def truth(self) -> Truth:
        live, rollouts = self.live(), self.shape.rollouts
        shape = (self.labels.shape[0], self.labels.shape[1])

        def objective(logp: Tensor, _: Tensor) -> Tensor:
            table = logp.new_zeros(self.labels.numel()).index_put((live,), logp).view(shape)
            labelled = self.labels[rollouts:, 1:] != -100
            policy, anchor = table[:rollouts, :-1], table[rollouts:, :-1]
            rewards = self.rewards.double()
            return hybrid_loss(policy, self.policy_mask, anchor, labelled, rewards, RL_WEIGHT)

        targets = torch.roll(self.input_ids, -1, dims=1).flatten()[live]
        rows = self.hidden.flatten(0, 1)[live]
        truth = truth_of(rows, self.weight, targets, objective)
        return truth.scattered(live, self.labels.numel())


def _result(values: dict[str, Tensor], grad_hidden: Tensor, grad_weight: Tensor) -> Result:
    return Result(values, grad_hidden.flatten(0, 1), grad_weight)


def _sides(step: Step, options: Options) -> Iterator[Side]:
    yield Side(name="released", label="released order of operations", run=step.released)
    for side in provider_sides(options, step.provider):
        backend = side.name.removeprefix("ours-")
        if side.ours and backend != "reference":
            # Ours computes the whole step in one call.
            yield replace(side, run=side.run and step.ours(backend))
        elif not side.ours and side.run:
            yield side


def make_case(shape: HybridShape, dtype: str, options: Options) -> Case:
    step = Step(shape, DTYPES[dtype], options.device)
    return Case(
        shape=shape,
        operation="hybrid step",
        dtype=dtype,
        sides=list(_sides(step, options)),
        truth=step.truth,
        rows=step.hidden.flatten(0, 1)[step.live()],
        weight=step.weight,
        positions=shape.positions,
    )


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    for name in options.shapes or (("quick",) if options.quick else (PAPER.name,)):
        for dtype in options.dtypes:
            yield partial(make_case, HYBRID[name], dtype, options)


def run(options: Options) -> int:
    return run_cases(NAME, cases(options), options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse(__doc__, shapes=HYBRID, argv=argv))


if __name__ == "__main__":
    sys.exit(main())
