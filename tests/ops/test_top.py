"""``top``: whether no id has a larger log-prob than the target, on every backend."""

import contextlib
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import wavalign_fast as wf
from tests.gpu.chunk_loop.checks import on
from tests.ops.problems import Problem, problem
from tests.ranks import run_ranks
from wavalign_fast.ops.chunked import compaction

BACKENDS = ["reference", "cpu", "definition"]
"""``definition``: the loop over chunks, which all GPU backends share, with its row kernels."""


def scored(p: Problem, backend: str, **options) -> wf.LogProb:
    known = "auto" if backend == "definition" else backend
    with on(backend) if backend == "definition" else contextlib.nullcontext():
        return wf.linear_logprob(
            p.hidden, p.weight, p.targets, bias=p.bias, temperature=0.7,
            options=wf.LossOptions(backend=known), **options,
        )  # fmt: skip


def of_every_id(p: Problem, backend: str) -> torch.Tensor:
    """Log-probs [T, V] as the backend returns them for every id in the place of the target."""
    columns = [
        scored(p._replace(targets=torch.full_like(p.targets, v)), backend).logp
        for v in range(len(p.weight))
    ]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_target_is_the_most_likely_id_as_the_results_hold_it(backend: str) -> None:
    p = problem(40, 8, 9, torch.float32, bias=True, scale=0.01)  # logits that nearly tie
    p.weight[5] = p.weight[2]
    p.bias[5] = p.bias[2] = 3.0  # the best two, equal
    p.bias[1] = -torch.inf
    p.targets[:9] = torch.tensor([2, 5, 2, 5, 1, -100, 3, 2, 5])
    plain, asked = scored(p, backend), scored(p, backend, with_top=True, with_entropy=True)
    assert plain.top is None and plain.entropy is None and asked.top.dtype == torch.bool
    assert torch.equal(asked.logp, plain.logp) and torch.equal(asked.lse, plain.lse)
    best = of_every_id(p, backend).amax(1)
    assert torch.equal(asked.top, (p.targets != -100) & (asked.logp == best))
    assert asked.top[[0, 1, 2, 3, 7, 8]].all() and not asked.top[4:7].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_id_is_always_the_most_likely_and_a_nan_never(backend: str) -> None:
    alone = problem(5, 4, 1, torch.float32, ignored=False)
    assert scored(alone, backend, with_top=True).top.all()
    broken = problem(5, 4, 6, torch.float32, ignored=False)
    broken.hidden[2] = torch.nan
    assert not scored(broken, backend, with_top=True).top[2]
    empty = problem(0, 4, 6, torch.float32)
    assert scored(empty, backend, with_top=True).top.shape == (0,)


def test_ignored_rows_of_a_captured_call_are_not_top() -> None:
    p = problem(12, 4, 6, torch.float32)
    with mock.patch.object(compaction, "capturing", lambda device: True):
        found = scored(p, "definition", with_top=True).top
    assert (p.targets == -100).any() and torch.equal(found, scored(p, "cpu", with_top=True).top)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_does_not_change(backend: str) -> None:
    p = problem(30, 8, 12, torch.float32)
    grads = []
    for with_top in (False, True):
        hidden = p.hidden.clone().requires_grad_()
        out = scored(p._replace(hidden=hidden), backend, with_top=with_top)
        (out.logp.sum() + out.lse.square().sum()).backward()
        grads.append(hidden.grad)
    assert torch.equal(*grads) and not out.top.requires_grad and out.top.any()


def sharded_top(backend: str, dtype: torch.dtype) -> list[bool]:
    p = problem(20, 8, 13, dtype, seed=3, ignored=False)
    logits = p.hidden @ p.weight.T
    p.targets[:6] = logits.argmax(1)[:6]
    p.targets[7:13] = logits[7:13, :7].argmax(1)  # the best of one slice, not always of both
    p.targets[13:] = logits[13:, 7:].argmax(1) + 7
    p.targets[6] = -100
    first = 7 * dist.get_rank()
    shard = wf.HeadShard(
        weight=p.weight[first : first + 7], start=first, vocab_size=13, group=dist.group.WORLD,
        height=19,
    )  # fmt: skip
    with on(backend) if backend == "definition" else contextlib.nullcontext():
        found = wf.linear_logprob(
            p.hidden, shard, p.targets, with_top=True,
            options=wf.LossOptions(backend="auto" if backend == "definition" else backend),
        )  # fmt: skip
    whole = wf.linear_logprob(
        p.hidden, p.weight, p.targets, with_top=True, options=wf.LossOptions(backend="reference")
    )
    return [torch.equal(found.top, whole.top), bool(whole.top[:6].all()), not whole.top[6]]


def all_sharded() -> list[bool]:
    cases = [("reference", torch.float64), ("cpu", torch.float32), ("definition", torch.float32)]
    return [fine for case in cases for fine in sharded_top(*case)]


def test_over_a_sharded_head() -> None:
    assert all(all(found) for found in run_ranks(2, all_sharded))
