"""Every backend and every fused loss honours or refuses every field of ``LossOptions``."""

import dataclasses
import importlib.util
import inspect
import re
import sys
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import wavalign_fast as wf
from tests.gpu.chunk_loop import checks
from wavalign_fast.ops import LossOptions, backends, cuda
from wavalign_fast.ops import extension as compiled
from wavalign_fast.ops.chunked import row_ops
from wavalign_fast.ops.options import BACKENDS

ROWS, VOCAB, LIVE = 700, 600, 640
LAYOUT = wf.ModalityLayout(vocab_size=VOCAB, speech=((300, VOCAB),))
ASKED = {
    "memory_budget": 4096,
    "weight_grad_dtype": torch.float64,
    "deterministic": False,
    "skip_tolerance": 0.5,
    "live_rows": 690,
}
"""For every field a value other than its default."""
GPU = {"cuda", "triton"}
HONOURED = {
    "memory_budget": {"cpu", *GPU},
    "weight_grad_dtype": set(),  # the kernels sum in float32, see below
    "deterministic": {"reference", "cpu", *GPU},  # a permission that a backend need not use
    "skip_tolerance": {"cpu"},
    "live_rows": GPU,
}
EVERY = [
    (backend, field) for backend in BACKENDS if backend != "auto" for field in ASKED
]  # fmt: skip


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, 16, generator=g).requires_grad_()
    weight = torch.randn(VOCAB, 16, generator=g).requires_grad_()
    return hidden, weight, torch.randint(0, 300, (ROWS,), generator=g)


def logprobs(hidden, weight, targets, options):
    # Different coefficients: with equal ones the gradients nearly cancel.
    coefficients = torch.linspace(-1, 2, LIVE)
    found = wf.linear_logprob(
        hidden, weight, targets.clone().index_fill_(0, DEAD, -100), options=options
    )
    return (coefficients * found.logp[:LIVE]).sum()


def hybrid(hidden, weight, targets, options):
    row = torch.arange(ROWS) // (LIVE // 4)
    row[DEAD] = -1
    batch = wf.HybridBatch(
        targets, row, torch.full_like(row, -1), torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    )
    return wf.HybridObjective(LAYOUT, gate=1.0, options=options)(hidden, weight, batch).loss


def dpo(hidden, weight, targets, options):
    return wf.fused_dpo_loss(
        hidden,
        weight,
        targets.clone().index_fill_(0, DEAD, -100),
        torch.arange(ROWS) // 320 % 2,
        torch.tensor([[0, 1]]),
        layout=LAYOUT,
        ref_logp=torch.zeros(2),
        options=options,
    ).loss


DEAD = torch.arange(LIVE, ROWS)
LOSSES = {"linear_logprob": logprobs, "hybrid": hybrid, "dpo": dpo}


def gradients(name: str, options: LossOptions) -> list[torch.Tensor]:
    leaves = operands()
    return list(torch.autograd.grad(LOSSES[name](*leaves, options), leaves[:2]))


def test_no_field_is_forgotten() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(LossOptions)}
    assert set(ASKED) == set(HONOURED) == set(fields) - {"backend"}
    assert all(fields[name] != value for name, value in ASKED.items())


def test_help_describes_every_field() -> None:
    for kind in (LossOptions, wf.LogProb):
        described = set(re.findall(r"^ {4}(\w+): ", inspect.getdoc(kind), re.MULTILINE))
        assert described >= set(inspect.signature(kind).parameters), kind.__name__


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("backend", "field"), EVERY)
def test_an_option_is_honoured_or_refused_by_name(monkeypatch, name, backend, field) -> None:
    monkeypatch.setattr(backends, "_unusable", lambda backend, hidden: None)
    options = LossOptions(backend=backend, **{field: ASKED[field]})
    if backend in HONOURED[field]:
        assert backends.choose_backend(options, operands()[0]) == backend
        return
    with pytest.raises(
        ValueError, match=rf"{field}: got {re.escape(str(ASKED[field]))}, .*{backend}"
    ):
        gradients(name, options)


class Calls(TorchDispatchMode):
    """The arguments of the C++ forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.wavalign_fast.linear_logprob.default:
            self.seen.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LOSSES)
def test_the_cpu_keeps_no_more_than_its_budget(name) -> None:
    for budget in (0, 4096, 100_000):
        with Calls() as calls:
            gradients(name, LossOptions(backend="cpu", memory_budget=budget))
        ((*_, kept, _, _),) = calls.seen
        assert kept == budget


@pytest.mark.parametrize("name", LOSSES)
def test_the_cpu_skips_as_much_as_it_may(name) -> None:
    exact, skipped = (
        gradients(name, LossOptions(backend="cpu", skip_tolerance=value)) for value in (0.0, 0.5)
    )
    for full, less in zip(exact, skipped, strict=True):
        assert (full - less).abs().max() > 1e-3 * full.abs().max()


@pytest.mark.parametrize("name", LOSSES)
def test_the_chunk_loop_keeps_to_budget_and_capacity(monkeypatch, name) -> None:
    """The loop of the GPU backends, with the definition as its row kernels."""
    heights = []
    row_stats = row_ops.row_stats

    def counted(chunk):
        heights.append(len(chunk.logits))
        return row_stats(chunk)

    monkeypatch.setattr(row_ops, "row_stats", counted)

    def heights_with(**options) -> list[int]:
        heights.clear()
        with checks.on("definition"):
            gradients(name, LossOptions(**options))
        return list(heights)

    whole = heights_with()
    assert sum(whole) == LIVE
    assert max(heights_with(memory_budget=ASKED["memory_budget"])) < max(whole)
    assert sum(heights_with(live_rows=ASKED["live_rows"])) == ASKED["live_rows"]


class NoOps:
    """Stands in for the CUDA ops: a call of any of them fails."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"the CUDA kernel {name} is called")


def rewards_alone(hidden, weight, targets, options):
    rewards = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    found = wf.group_advantages(rewards, options=options), wf.MixingGate()(rewards, options)
    return sum(value.sum() for value in found)


def with_a_gate(hidden, weight, targets, options):
    row = torch.arange(ROWS) // (ROWS // 4)
    batch = wf.HybridBatch(targets, row, row, torch.tensor([[1.0, 2.0, 3.0, 5.0]]))
    return wf.HybridObjective(LAYOUT, options=options)(hidden, weight, batch).loss


EVERY_LOSS = LOSSES | {"rewards": rewards_alone, "gate": with_a_gate}


@pytest.mark.parametrize("from_environment", [False, True])
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_the_reference_runs_no_cuda_kernel(monkeypatch, name, from_environment) -> None:
    """Not for groups of rewards either, wherever they are."""
    monkeypatch.setattr(cuda, "OPS", NoOps())
    monkeypatch.setattr(cuda, "serves", lambda tensor: True)
    options = LossOptions(backend="reference")
    if from_environment:
        monkeypatch.setattr(backends, "_ENV_BACKEND", "reference")
        options = None
    assert EVERY_LOSS[name](*operands(), options).isfinite()
    monkeypatch.setattr(backends, "_ENV_BACKEND", "auto")
    if name in ("hybrid", "gate", "rewards"):  # which have groups
        with pytest.raises(AssertionError, match="the CUDA kernel group_statistics is called"):
            EVERY_LOSS[name](*operands(), None)


def test_the_reference_sums_in_double_for_double_operands_alone() -> None:
    hidden, weight, targets = (t.double() if t.is_floating_point() else t for t in operands())
    options = LossOptions(backend="reference", weight_grad_dtype=torch.float64)
    assert wf.linear_logprob(hidden, weight, targets, options=options).logp.dtype == torch.float64


def extension(**info: str) -> ModuleType:
    """A stand-in for the compiled module."""
    module = ModuleType("wavalign_fast._C")
    module.__spec__ = importlib.util.find_spec("wavalign_fast._C")
    module.build_info = lambda: info
    return module


@pytest.mark.parametrize(
    ("built", "running", "served"),
    [
        ("2.13.0+cpu", "2.13.1+cu130", True),
        ("2.13.0", "2.13.0", True),
        ("2.11.0", "2.13.0", False),
        ("2.13.0", "2.1.13", False),
        ("1.13.0", "2.13.0", False),
    ],
)
def test_kernels_of_another_torch_are_refused(monkeypatch, built, running, served) -> None:
    monkeypatch.setitem(sys.modules, "wavalign_fast._C", extension(torch=built))
    monkeypatch.setattr(torch, "__version__", running)
    loaded = compiled._load_extension()
    if served:
        assert loaded == {"torch": built}
        return
    assert built in loaded and running in loaded
    monkeypatch.setattr(compiled, "EXTENSION", loaded)
    with pytest.raises(ValueError, match="'cpu' cannot be used: the C"):
        wf.linear_logprob(*operands(), options=LossOptions(backend="cpu"))
