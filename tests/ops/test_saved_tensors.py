"""Gradients where autograd does not hand back the tensors that the forward pass saved.

Activation checkpointing runs the forward pass again and hands over what that one saved; other hooks
hand over copies. What stands beside the saved tensors belongs to the first forward pass.
"""

import threading
from collections.abc import Callable

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from tests.ops.problems import CPU, Problem, problem
from wavalign_fast.ops import LossOptions, backend_status, cpu, linear_logprob
from wavalign_fast.ops.chunked import autograd

pytestmark = pytest.mark.skipif(
    backend_status()["cpu"] is not None, reason=f"no kernels: {backend_status()['cpu']}"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["hooks are seen", "hooks are not seen"], autouse=True)
def hooks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hooks are seen no probability buffer is made. The kernels must not depend on it."""
    if request.param == "hooks are not seen":
        monkeypatch.setattr(cpu, "_saved_as_it_is", lambda: True)


def leaves_of(p: Problem) -> list[torch.Tensor]:
    return [t.clone().requires_grad_() for t in (p.hidden, p.weight)]


def loss_of(hidden, weight, targets, options: LossOptions = CPU) -> torch.Tensor:
    out = linear_logprob(hidden, weight, targets, with_entropy=True, options=options)
    return -out.logp.sum() + 0.1 * out.entropy.sum()


def wanted(p: Problem, options: LossOptions = CPU) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss_of(*(leaves := leaves_of(p)), p.targets, options), leaves)


def assert_same_bits(got, want) -> None:
    for ours, truth in zip(got, want, strict=True):
        assert torch.equal(ours, truth)


def again(*args, **settings) -> torch.Tensor:
    return checkpoint(loss_of, *args, **({"use_reentrant": False} | settings))


def nested(*args) -> torch.Tensor:
    return checkpoint(again, *args, use_reentrant=False)


def reentrant(*args) -> torch.Tensor:
    return again(*args, use_reentrant=True)


def to_the_end(*args) -> torch.Tensor:
    with set_checkpoint_early_stop(False):
        return again(*args)


def with_kept_ops(*args) -> torch.Tensor:
    """The results of our ops are kept, everything around them is computed again."""

    def policy(ctx, op, *args, **kwargs) -> CheckpointPolicy:
        ours = op.namespace == "wavalign_fast"
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    return again(*args, context_fn=lambda: create_selective_checkpoint_contexts(policy))


def offloaded(*args) -> torch.Tensor:
    with save_on_cpu():
        return loss_of(*args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [again, nested, reentrant, to_the_end, with_kept_ops, offloaded])
@pytest.mark.parametrize("other", ["none", "waits", "comes between"])
def test_gradients_are_those_of_a_plain_call(
    dtype: torch.dtype, run: Callable[..., torch.Tensor], other: str
) -> None:
    p, q = (problem(40, 64, 700, dtype, seed=seed) for seed in (0, 1))
    want, want_other = wanted(p), wanted(q)
    mine, others = leaves_of(p), leaves_of(q)
    # The buffer is taken in one forward pass and free in the other, or the other way round.
    beside = loss_of(*others, q.targets) if other == "waits" else None
    loss = run(*mine, p.targets)
    if other == "comes between":
        beside = loss_of(*others, q.targets)
    if other == "waits":
        assert_same_bits(torch.autograd.grad(beside, others), want_other)
    loss.backward()
    assert_same_bits([leaf.grad for leaf in mine], want)
    if other == "comes between":
        assert_same_bits(torch.autograd.grad(beside, others), want_other)


@pytest.mark.parametrize(
    "options",
    [CPU, LossOptions(backend="cpu", skip_tolerance=0.2), LossOptions(memory_budget=40_000)],
    ids=str,
)
def test_options_hold_in_a_checkpoint(options: LossOptions) -> None:
    p = problem(300, 64, 700, torch.float32)
    mine = leaves_of(p)
    got = torch.autograd.grad(again(*mine, p.targets, options), mine)
    assert_same_bits(got, wanted(p, options))


@pytest.mark.parametrize("run", [loss_of, again, nested, to_the_end, offloaded])
def test_a_second_backward_pass_after_the_first_gradient_has_changed(run) -> None:
    p = problem(40, 64, 700, torch.bfloat16)
    want, mine = wanted(p), leaves_of(p)
    loss = run(*mine, p.targets)
    for _ in range(3):
        got = torch.autograd.grad(loss, mine, retain_graph=True)
        assert_same_bits(got, want)
        for gradient in got:
            gradient.fill_(torch.nan)  # as an optimizer may


@pytest.mark.parametrize("kept", ["nothing", "bytes", "floats", "everything"])
@pytest.mark.parametrize("passes", [1, 2])
def test_hooks_that_copy_a_part(kept: str, passes: int) -> None:
    """What is a copy in a second backward pass is as the forward pass left it, the rest is not."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        keep = {"nothing": False, "everything": True, "bytes": tensor.dtype == torch.uint8}
        return tensor if keep.get(kept, tensor.dtype != torch.uint8) else tensor.clone()

    p = problem(40, 64, 700, torch.bfloat16)
    want, mine = wanted(p), leaves_of(p)
    with saved_tensors_hooks(copied, copied):
        loss = loss_of(*mine, p.targets)
    for _ in range(passes):
        got = torch.autograd.grad(loss, mine, retain_graph=True)
        assert_same_bits(got, want)
        got[1].fill_(torch.nan)


def test_many_checkpoints_in_one_backward_pass() -> None:
    problems = [problem(40, 64, 700, torch.bfloat16, seed=seed) for seed in range(4)]
    every = [leaves_of(p) for p in problems]
    losses = [again(*leaves, p.targets) for p, leaves in zip(problems, every, strict=True)]
    sum(losses).backward()
    for p, leaves in zip(problems, every, strict=True):
        assert_same_bits([leaf.grad for leaf in leaves], wanted(p))


def test_threads_do_not_take_each_others_prob_buffer() -> None:
    problems = [problem(60, 64, 700, torch.bfloat16, seed=seed) for seed in range(3)]
    truths = [wanted(p) for p in problems]
    wrong: list[int] = []

    def work(index: int) -> None:
        p = problems[index]
        for turn in range(6):
            run = loss_of if turn % 2 else again
            got = torch.autograd.grad(run(*(mine := leaves_of(p)), p.targets), mine)
            if not all(torch.equal(g, w) for g, w in zip(got, truths[index], strict=True)):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


HOOKS = {"given back": lambda t: t, "detached": torch.Tensor.detach, "copied": torch.clone}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_step_of_gradients_made_in_the_forward_pass_is_used_once(hook) -> None:
    """Torch's own refusal counts the changes of a saved tensor, which hooks circumvent."""
    operand = torch.zeros(3, requires_grad=True)
    with saved_tensors_hooks(hook, hook):
        loss = autograd.with_gradients(torch.ones(()), [operand], [torch.ones(3)], "definition")
    (2 * loss).backward(retain_graph=True)
    assert torch.equal(operand.grad, torch.full((3,), 2.0))
    with pytest.raises(RuntimeError, match="a second backward pass through one hybrid step"):
        loss.backward()
