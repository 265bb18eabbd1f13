"""The CPU kernels against the definition, and the definition against finite differences."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.problems import CPU, REFERENCE, UNBIASED, Problem, as_double, problem, results
from tests.tolerances import FLOOR, GRADIENT_FACTOR, VALUE_FACTOR, relative_error
from wavalign_fast.ops import LossOptions, linear_logprob

ALL_TERMS = "logp entropy lse"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def eager(p: Problem) -> dict[str, torch.Tensor]:
    """What a user writes without us, in the dtype of the operands."""
    hidden, weight = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()
    live = p.targets != -100
    logits = hidden[live] @ weight.T
    logp = torch.log_softmax(logits, -1).gather(-1, p.targets[live, None]).squeeze(-1)
    out = logp.new_zeros(p.targets.shape).index_put((live.nonzero().squeeze(-1),), logp)
    g = torch.Generator().manual_seed(7)
    coefficient = torch.randn(p.targets.shape, generator=g)
    coefficient[torch.rand(p.targets.shape, generator=g) < 0.3] = 0.0
    (out * coefficient.to(out.dtype)).sum().backward()
    return {"logp": out.detach(), "grad_hidden": hidden.grad, "grad_weight": weight.grad}


@pytest.mark.parametrize("terms", ["logp", "entropy", "lse", ALL_TERMS])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reference_passes_gradcheck(terms: str, temperature: float) -> None:
    p = as_double(problem(5, 4, 7, torch.float64, bias=True))

    def weighted(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        out = linear_logprob(
            hidden, weight, p.targets, bias=bias, temperature=temperature, with_entropy=True,
            options=REFERENCE,
        )  # fmt: skip
        return torch.stack([getattr(out, name) for name in terms.split()])

    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.weight, p.bias)]
    assert torch.autograd.gradcheck(weighted, leaves)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 300), h=st.integers(1, 40), v=st.integers(1, 700),
    dtype=st.sampled_from(DTYPES), bias=st.booleans(), temperature=st.sampled_from([1.0, 0.6]),
    terms=st.sampled_from(["logp", "logp lse", ALL_TERMS]), seed=st.integers(0, 99),
    budget=st.sampled_from([None, 0, 50_000]),
)  # fmt: skip
def test_cpu_agrees_with_the_reference(n, h, v, dtype, bias, temperature, terms, seed, budget):
    p = problem(n, h, v, dtype, seed=seed, scale=2.0, bias=bias)
    truth = results(as_double(p), REFERENCE, temperature=temperature, terms=terms)
    ours = results(
        p, LossOptions(backend="cpu", memory_budget=budget), temperature=temperature, terms=terms
    )
    for name, value in ours.items():
        floor = FLOOR[dtype] * (2 if name.startswith("grad") else 1)
        if not name.startswith("grad"):
            floor = FLOOR[torch.float32] * 5  # statistics are float32 whatever the operands
        # Values are nats, differences of logits: below one nat their error is absolute.
        # A gradient is a sum of entries of about 1 / V, which may cancel or, where p is near 1,
        # vanish: its error is measured against what it is a sum of.
        at_least = max(n, 1) ** 0.5 / v if name.startswith("grad") else 1.0
        assert relative_error(value, truth[name], at_least=at_least) <= floor, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_a_small_multiple_of_plain_torch(dtype: torch.dtype) -> None:
    p = problem(200, 64, 3001, dtype, scale=4.0)
    truth, theirs, ours = results(as_double(p), REFERENCE), eager(p), results(p, CPU)
    for name in theirs:
        factor = GRADIENT_FACTOR if name.startswith("grad") else VALUE_FACTOR
        allowed = factor * relative_error(theirs[name], truth[name]) + FLOOR[torch.float32]
        assert relative_error(ours[name], truth[name]) <= allowed, name


def test_fp32_sums_are_at_least_as_exact_as_plain_torch() -> None:
    """One chain of additions along the hidden size would be 1.3 times worse."""
    theirs, ours = [], []
    for seed in range(8):
        p = problem(64, 512, 500, torch.float32, seed=seed, scale=4.0)
        truth = results(as_double(p), REFERENCE)["logp"]
        theirs.append(eager(p)["logp"] - truth)
        ours.append(results(p, CPU)["logp"] - truth)
    assert torch.stack(ours).norm() <= torch.stack(theirs).norm()


def test_bf16_logps_are_those_of_float64_on_the_same_operands() -> None:
    p = problem(128, 256, 4099, torch.bfloat16, scale=8.0, ignored=False)
    logits = p.hidden.double() @ p.weight.double().T
    assert logits.std() > 7
    truth = torch.log_softmax(logits, -1).gather(-1, p.targets[:, None]).squeeze(-1)
    ours = linear_logprob(p.hidden, p.weight, p.targets, options=CPU).logp
    assert (ours - truth).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    p = problem(301, 96, 1111, dtype, ignored=False)
    whole = results(p, CPU, terms="lse")
    for rows in ([0], [300], [255, 256], list(range(17, 290)), list(range(0, 301, 3))[::-1]):
        part = Problem(p.hidden[rows], p.weight, p.targets[rows], None)
        out = linear_logprob(part.hidden, part.weight, part.targets, with_entropy=True, options=CPU)
        for name, value in zip(("logp", "entropy", "lse"), out[:3], strict=True):
            assert torch.equal(value, whole[name][rows]), (name, len(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_bits_do_not_depend_on_budget_threads_or_batch(dtype: torch.dtype) -> None:
    p = problem(301, 96, 1111, dtype, ignored=False)
    before = torch.get_num_threads()

    def grads(rows: torch.Tensor, budget: int | None, threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        hidden, weight = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()
        out = linear_logprob(
            hidden[rows], weight, p.targets[rows],
            options=LossOptions(backend="cpu", memory_budget=budget),
        )  # fmt: skip
        (out.logp * p.hidden[rows, 0].float()).sum().backward()
        return [hidden.grad, weight.grad]

    try:
        everything = torch.arange(301)
        expected = grads(everything, None, 1)
        for budget, threads in ((None, 2), (None, 3), (0, 1), (200_000, 2)):
            got = grads(everything, budget, threads)
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
        few = torch.arange(31, 77)
        assert torch.equal(grads(few, None, 1)[0][31:77], expected[0][31:77])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [REFERENCE, CPU], ids=["reference", "cpu"])
@pytest.mark.parametrize("n, ignored", [(0, False), (6, True)])
def test_without_live_rows_the_gradients_are_connected_zeros(options, n, ignored) -> None:
    hidden = torch.full((n, 8), torch.nan, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)
    targets = torch.full((n,), -100 if ignored else 0)
    out = linear_logprob(hidden, weight, targets, options=options)
    out.logp.sum().backward()
    assert torch.equal(out.logp, torch.zeros(n))
    assert torch.equal(hidden.grad, torch.zeros(n, 8))
    assert torch.equal(weight.grad, torch.zeros(11, 8))


@pytest.mark.parametrize("options", [REFERENCE, CPU], ids=["reference", "cpu"])
def test_nan_under_an_ignored_or_gradientless_row_stays_there(options) -> None:
    p = problem(6, 8, 20, torch.float32, ignored=False)
    clean = linear_logprob(p.hidden[2:], p.weight, p.targets[2:], options=options).logp
    hidden = p.hidden.clone()
    hidden[:2] = torch.nan
    targets = p.targets.clone()
    targets[0] = -100
    weight = p.weight.clone().requires_grad_()
    out = linear_logprob(hidden, weight, targets, options=options).logp
    assert out[0] == 0
    assert torch.isnan(out[1])
    assert torch.equal(out[2:], clean)
    if options is CPU:
        (out * torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])).nansum().backward()
        assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("terms", ["logp", ALL_TERMS])  # kept and recomputed probabilities
@pytest.mark.parametrize("options", [REFERENCE, CPU], ids=["reference", "cpu"])
def test_banned_ids_make_no_nan(options, terms) -> None:
    p = problem(40, 16, 600, torch.float32, ignored=False)
    bias = torch.zeros(600)
    bias[:300] = -torch.inf  # a whole tile and a part of one
    p = p._replace(bias=bias, targets=p.targets % 300 + 300)
    got = results(p, options, terms=terms)
    kept = problem(40, 16, 600, torch.float32, ignored=False)
    kept = Problem(kept.hidden, kept.weight[300:], p.targets - 300, torch.zeros(300))
    want = results(as_double(kept), REFERENCE, terms=terms)
    for name in ("logp", "entropy", "lse", "grad_hidden"):
        assert relative_error(got[name], want[name]) <= 1e-5, name
    assert torch.equal(got["grad_weight"][:300], torch.zeros(300, 16))
    assert relative_error(got["grad_weight"][300:], want["grad_weight"]) <= 1e-5


@pytest.mark.parametrize("options", [CPU, REFERENCE], ids=lambda o: o.backend)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 600])
def test_where_all_ids_are_banned_there_is_no_log_prob(options, dtype, vocab) -> None:
    """0 would be the best of all losses."""
    p = problem(3, 16, vocab, dtype, ignored=False)
    bias = torch.full((vocab,), -torch.inf)
    out = linear_logprob(
        p.hidden, p.weight, p.targets, bias=bias, with_entropy=True, options=options
    )
    assert out.logp.isnan().all() and out.entropy.isnan().all() and out.lse.isneginf().all()


def test_frozen_operands_get_no_gradient() -> None:
    p = problem(9, 8, 20, torch.float32, ignored=False)
    for frozen in ("hidden", "weight"):
        leaves = {"hidden": p.hidden.clone(), "weight": p.weight.clone()}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name != frozen)
        linear_logprob(
            leaves["hidden"], leaves["weight"], p.targets, options=CPU
        ).logp.sum().backward()
        both = results(p, CPU, terms="lse")
        assert leaves[frozen].grad is None
        assert sum(leaf.grad is not None for leaf in leaves.values()) == 1
        assert both["grad_hidden"].shape == p.hidden.shape


def test_strange_strides_shapes_and_integer_types() -> None:
    p = problem(24, 8, 50, torch.float32, ignored=False)
    plain = linear_logprob(p.hidden, p.weight, p.targets, options=CPU).logp
    shaped = linear_logprob(
        p.hidden.T.contiguous().T.reshape(2, 12, 8), p.weight.T.contiguous().T,
        p.targets.to(torch.int32).reshape(2, 12), options=CPU,
    )  # fmt: skip
    assert torch.equal(shaped.logp.reshape(-1), plain)
    hidden = p.hidden.clone().requires_grad_()
    out = linear_logprob(hidden, p.weight, p.targets, options=CPU).logp
    out.backward(torch.ones(()).expand(24))  # stride 0
    again = p.hidden.clone().requires_grad_()
    linear_logprob(again, p.weight, p.targets, options=CPU).logp.sum().backward()
    assert torch.equal(hidden.grad, again.grad)


def test_two_backward_passes_and_no_second_derivative() -> None:
    p = problem(9, 8, 20, torch.float32, ignored=False)
    hidden = p.hidden.clone().requires_grad_()
    loss = linear_logprob(hidden, p.weight, p.targets, options=CPU).logp.square().sum()
    (first,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(loss, hidden, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="no second derivative"):
        second.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    p = problem(20, 8, 300, dtype, bias=True)
    hidden, weight = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()
    op = torch.ops.wavalign_fast.linear_logprob.default
    # All of opcheck without a store, whose content past the kept tiles is never written.
    torch.library.opcheck(op, (hidden, weight, p.targets, p.bias, 0.9, -100, 0, 0.0, False))
    torch.library.opcheck(op, (hidden, weight, p.targets, p.bias, 0.9, -100, 0, 0.3, False))
    capped = (hidden, weight, p.targets, p.bias, 0.9, -100, 0, 0.0, False, 2.0, True)
    torch.library.opcheck(op, capped)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for want_prob_buffer in (False, True):
        inputs = (hidden, weight, p.targets, p.bias, 0.9, -100, 4096, 0.0, want_prob_buffer)
        torch.library.opcheck(op, inputs, test_utils=tests)
    logp, entropy, _, *kept = op(
        p.hidden, p.weight, p.targets, p.bias, 1.0, -100, 4096, 0.1, False
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.wavalign_fast.linear_logprob_backward.default,
        (torch.randn(20), None, torch.randn(20), p.hidden, p.weight, p.targets, p.bias, 1.0, -100,
         logp, entropy, *kept, True, False, True),
        test_utils=tests,
    )  # fmt: skip
    *kept, _ = kept
    torch.library.opcheck(
        torch.ops.wavalign_fast.linear_logprob_backward_.default,
        (torch.randn(20), None, torch.randn(20), p.hidden, p.weight, p.targets, p.bias, 1.0, -100,
         logp, entropy, *kept, torch.zeros_like(p.weight), True, True),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_compiles_without_a_graph_break() -> None:
    p = problem(20, 8, 300, torch.float32)

    def step(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_logprob(hidden, weight, p.targets, options=CPU).logp.sum()

    grads = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaves = [p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()]
        function(*leaves).backward()
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast_takes_the_operands_down() -> None:
    p = problem(20, 8, 300, torch.float32, ignored=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_logprob(p.hidden, p.weight, p.targets, options=CPU).logp
    low = linear_logprob(p.hidden.bfloat16(), p.weight.bfloat16(), p.targets, options=CPU).logp
    assert torch.equal(ours, low)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_blas_path_agrees_with_the_tile_kernels(dtype: torch.dtype) -> None:
    p = problem(70, 24, 600, dtype)
    tiled = results(p, CPU, terms=ALL_TERMS)
    with torch.backends.mkldnn.flags(enabled=False):
        blas = results(p, CPU, terms=ALL_TERMS)
    for name, value in blas.items():
        assert relative_error(value, tiled[name]) <= FLOOR[dtype], name


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_the_other_instruction_sets_agree(capability: str, tmp_path: Path) -> None:
    """In a process of its own: the instruction set is chosen once."""
    script = (
        "import sys, torch; sys.path.insert(0, '.');"
        "from tests.ops.problems import *;"
        "from wavalign_fast.ops.extension import EXTENSION;"
        "r = {str(d): results(problem(70, 24, 600, d, bias=True), CPU, terms='logp entropy')"
        " for d in (torch.float32, torch.bfloat16)};"
        "biases = [rounding_bias(d, 131) for d in (torch.bfloat16, torch.float16)];"
        f"torch.save((EXTENSION['isa'], r, biases), {str(tmp_path / 'out')!r})"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=root)
    isa, theirs, biases = torch.load(tmp_path / "out")
    assert isa.lower() == capability
    for dtype in (torch.float32, torch.bfloat16):
        ours = results(problem(70, 24, 600, dtype, bias=True), CPU, terms="logp entropy")
        for name, value in theirs[str(dtype)].items():
            assert relative_error(value, ours[name]) <= FLOOR[dtype], (dtype, name)
    assert all(abs(bias) < UNBIASED for part in biases for bias in part.values()), biases


@pytest.mark.parametrize("scoring", [True, False])
def test_probabilities_are_kept_only_for_a_backward_pass(scoring: bool) -> None:
    p = problem(20, 8, 300, torch.float32, ignored=False)
    weight = p.weight.clone().requires_grad_()
    with torch.set_grad_enabled(not scoring):
        out = linear_logprob(p.hidden, weight, p.targets, options=CPU).logp
    if scoring:
        assert out.grad_fn is None
    with torch.profiler.profile(profile_memory=True) as seen, torch.set_grad_enabled(not scoring):
        linear_logprob(p.hidden, weight, p.targets, options=CPU)
    # 32 lanes of 300 probabilities and more, against statistics of a few hundred bytes a tile.
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert (largest < 20_000) is scoring
