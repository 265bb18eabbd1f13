"""The chunk loop behind the public functions: with the definition, with emulated CUDA kernels, on
a GPU."""

from collections.abc import Callable, Iterator

import pytest
import torch

import wavalign_fast as wf
from benchmarks.gpu import WARM_UPS
from benchmarks.gpu import captured as captured_in_graph
from tests.gpu.chunk_loop import checks, float16
from tests.gpu.chunk_loop.checks import Place
from tests.gpu.conformance.extension.compiling import emulated
from wavalign_fast.ops import backend_status, cuda
from wavalign_fast.ops.chunked import autograd, compaction

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
PLACES = [
    ("definition", FP64),
    ("definition", FP32),
    ("definition", BF16),
    ("definition", FP16),
    ("emulated", FP32),
    ("emulated", BF16),
    *(
        pytest.param((backend, dtype), marks=pytest.mark.gpu)
        for backend in ("cuda", "triton")
        for dtype in (FP32, BF16, FP16)
    ),
]


FP16_PLACES = [
    ("definition", FP16),
    ("emulated", FP16),
    *(pytest.param((backend, FP16), marks=pytest.mark.gpu) for backend in ("cuda", "triton")),
]


def _named(place: tuple[str, torch.dtype]) -> str:
    return f"{place[0]}-{str(place[1])[6:]}"


@pytest.fixture(params=PLACES, ids=_named)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    backend, dtype = request.param
    device = "cuda" if backend in ("cuda", "triton") else "cpu"
    if device == "cuda" and backend_status()[backend] is not None:
        pytest.skip(str(backend_status()[backend]))
    if backend == "emulated":
        monkeypatch.setattr(cuda, "OPS", emulated().ops)
        backend = "cuda"
    with checks.on(backend):
        yield Place(device, dtype)


@pytest.mark.parametrize("bias, temperature", [(False, 1.0), (True, 0.7)])
@pytest.mark.parametrize("budget", [None, checks.SMALL])
def test_logprobs_and_gradients(place, bias, temperature, budget):
    checks.logprob_agrees(place, bias=bias, temperature=temperature, budget=budget)


def test_bits_do_not_depend_on_the_batch(place):
    checks.bits_do_not_depend_on_the_batch(place)


def test_a_capacity_changes_nothing_while_it_holds_all_rows(place):
    checks.given_capacity_changes_nothing(place)


def test_nothing_to_do_gives_zeros(place):
    checks.nothing_to_do_gives_zeros(place)


HALVES = [
    "a_mean_of_many_rows_keeps_its_gradients",
    "rows_of_every_size_keep_their_gradients",
    "a_scaled_hybrid_step_keeps_its_gradients",
]


@pytest.mark.parametrize("place", FP16_PLACES, indirect=True, ids=_named)
@pytest.mark.parametrize("check", HALVES)
def test_float16(place, check):
    getattr(float16, check)(place.device)


@pytest.fixture(scope="module")
def step() -> checks.Step:
    return checks.some_step()


@pytest.mark.parametrize("config", checks.CONFIGS)
def test_a_hybrid_step_is_that_of_the_reference(place, step, config):
    checks.hybrid_agrees(step, place, config)


def test_one_backward_pass_and_no_second_derivative(place, step):
    checks.one_backward_pass_and_no_second_derivative(step, place)


def test_a_frozen_operand_gets_no_gradient(place, step):
    checks.head_alone_or_states_alone(step, place)


def test_a_bad_id_poisons_itself_alone(place):
    checks.a_bad_id_poisons_itself_alone(place)


def test_scores_without_a_gradient_are_those_with_one(place):
    """On-policy the ratio is exactly 1."""
    given = checks.operands(place)
    with torch.no_grad():
        scored = wf.linear_logprob(*given[:3]).logp
    trained = wf.linear_logprob(given.hidden.requires_grad_(), *given[1:3]).logp
    assert torch.equal(scored, trained)


def test_results_may_be_changed_in_place():
    given = checks.operands(Place("cpu", FP32), 40)
    with checks.on("definition"):
        hidden = given.hidden.requires_grad_()
        out = wf.linear_logprob(hidden, *given[1:3], with_entropy=True)
        entropy = out.entropy.clone()
        out.logp.mul_(2.0).sum().backward()
        doubled, hidden.grad = hidden.grad, None
        wf.linear_logprob(hidden, *given[1:3]).logp.sum().backward()
    torch.testing.assert_close(doubled, 2.0 * hidden.grad)
    assert torch.equal(out.entropy, entropy)


@pytest.mark.parametrize("live_rows", [None, 40])
def test_a_tracer_sees_whole_ops(place, live_rows):
    given = checks.operands(place, 40)

    def logp(hidden, weight):
        return wf.linear_logprob(hidden, weight, given.targets, options=options).logp.sum()

    options = wf.LossOptions(live_rows=live_rows)
    torch.compiler.reset()  # or the graphs of the other places would count against this one
    compiled = torch.compile(logp, backend="aot_eager", fullgraph=True)
    grads = []
    for function in (logp, compiled):
        leaves = [t.clone().requires_grad_() for t in given[:2]]
        function(*leaves).backward()
        grads.append([leaf.grad for leaf in leaves])
    for eager, traced in zip(*grads, strict=True):
        torch.testing.assert_close(eager, traced)


@pytest.mark.parametrize("dtype", [FP64, BF16, FP16])
def test_the_ops_of_the_loop_pass_opcheck(dtype):
    place = Place("cpu", dtype)
    given = checks.operands(place, 20, bias=True)
    hidden, weight, bias = (
        t.requires_grad_() for t in (given.hidden, given.weight, given.bias) if t is not None
    )
    how = ("definition", 2**20, True, 20)
    torch.library.opcheck(
        autograd.chunked_logprob_op,
        (hidden, weight, given.targets, bias, 0.9, -100, None, False, *how),
    )
    column = torch.rand(20, dtype=FP64 if dtype == FP64 else FP32)
    head = (hidden.detach(), weight.detach(), given.targets, None, 1.0, -100, None, False)
    table = (column, column, column, column, None, None)
    torch.library.opcheck(
        autograd.chunked_hybrid_step_op, (*head, *table, [0.8, 1.2], *how, True, True, False)
    )
    index = torch.tensor([3, -1, 0])
    torch.library.opcheck(compaction.gather_live_rows, (hidden, index, "definition"))
    torch.library.opcheck(compaction.scatter_live_rows, (hidden[:3], index, 20, "definition"))


def test_the_gate_and_advantages_come_from_the_kernels(monkeypatch):
    rewards = torch.tensor([[1.0, 2.0, 5.0], [4.0, torch.nan, 3.0], [torch.nan] * 3])
    plain, fast = wf.MixingGate(0.7, ema=0.6), wf.MixingGate(0.7, ema=0.6)
    wanted = [plain.step(rewards * factor) for factor in (1.0, 0.5)]
    advantages = [wf.group_advantages(rewards, std=std) for std in ("population", "sample")]
    ops = emulated().ops
    monkeypatch.setattr(cuda, "OPS", ops)
    monkeypatch.setattr(cuda, "serves", lambda tensor: True)
    for (rl_weight, parts), factor in zip(wanted, (1.0, 0.5), strict=True):
        found, found_parts = fast.step(rewards * factor)
        torch.testing.assert_close(found, rl_weight)
        assert found.shape == rl_weight.shape and found_parts.keys() == parts.keys()
        torch.testing.assert_close(list(found_parts.values()), list(parts.values()))
    for wanted_advantages, std in zip(advantages, ("population", "sample"), strict=True):
        assert torch.equal(wf.group_advantages(rewards, std=std), wanted_advantages)


@pytest.fixture(params=["cuda", "triton"])
def on_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    reason = backend_status()[request.param]
    if reason is not None:
        pytest.skip(reason)
    with checks.on(request.param):
        yield


def gpu_step(tables: str, live_rows: int | None) -> Callable[[], torch.Tensor]:
    """Runs a step with a gate, with its tables on a device, and returns the head's gradient."""
    step = checks.some_step()
    hidden, weight = (t.to("cuda", BF16).requires_grad_() for t in step[1:])
    batch = step.batch.to(torch.device(tables))
    objective = wf.HybridObjective(
        checks.LAYOUT, gate=wf.MixingGate(initial=0.5), options=wf.LossOptions(live_rows=live_rows)
    ).to(tables)

    def run() -> torch.Tensor:
        loss = objective(hidden, weight, batch).loss
        return torch.autograd.grad(loss, (hidden, weight))[1]

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("tables, live_rows", [("cpu", None), ("cuda", 64)])
def test_a_step_waits_for_nothing(on_gpu, tables, live_rows):
    run = gpu_step(tables, live_rows)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("live_rows", [None, 64])
def test_a_step_is_captured_in_a_graph(on_gpu, live_rows):
    _, replayed = captured_in_graph(gpu_step("cuda", live_rows))
    # Each warm-up moved the gate: the replay is the step after them.
    run = gpu_step("cuda", live_rows)
    *_, wanted = (run() for _ in range(WARM_UPS + 1))
    torch.testing.assert_close(replayed, wanted, rtol=1e-2, atol=1e-3)
