"""Nothing is timed before it is right: float64 truth, tolerances, and the effect of a failure."""

from dataclasses import replace

import pytest
import torch

from benchmarks import bench_dpo, bench_hybrid_loss, bench_linear_logprob, case, timing, truth
from benchmarks.options import DTYPES, Options
from benchmarks.record import load
from benchmarks.shapes import DPO, HYBRID, LOGPROB, QUICK
from benchmarks.truth import OURS, RIVALS, Tolerance, truth_of

SMALL = replace(LOGPROB["quick"], rows=24, hidden=16, vocab=203, speech=(100, 203))
PAIRS = replace(DPO["quick"], pairs=2, length=9, hidden=16, vocab=203, speech=(100, 203))
STEP = replace(QUICK, hidden=32, vocab=600, speech=(400, 600), boundary=(398, 399))
SIDES = ("ours-cpu", "ours-reference", "torch")


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(providers=SIDES, rounds=2, directory=tmp_path)


def logprob_case(options: Options, dtype: str = "fp32") -> case.Case:
    return bench_linear_logprob.make_case(SMALL, dtype, "logp+entropy", options)


def all_cases(options: Options, dtype: str) -> list[case.Case]:
    cases = [
        bench_linear_logprob.make_case(SMALL, dtype, operation, options)
        for operation in bench_linear_logprob.RETURNS
    ]
    cases.append(bench_hybrid_loss.make_case(STEP, dtype, options))
    return [*cases, bench_dpo.make_case(PAIRS, dtype, options)]


def test_the_truth_agrees_with_autograd_through_dense_logits(monkeypatch):
    monkeypatch.setattr(truth, "SLICE", 64)  # several slices, and a ragged one
    operands = bench_linear_logprob.Operands(SMALL, torch.float64, "cpu")

    def objective(logp, entropy):
        return (logp * operands.of_logp).sum() + (entropy.square() * operands.of_entropy).sum()

    found = truth_of(operands.hidden, operands.weight, operands.targets, objective)
    hidden, weight = operands.leaves()
    table = torch.log_softmax(hidden @ weight.T, dim=-1)
    logp = table.gather(1, operands.targets[:, None]).squeeze(1)
    loss = objective(logp, -(table.exp() * table).sum(-1))
    want_hidden, want_weight = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(found.values["loss"], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.grad_hidden, want_hidden, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.grad_weight, want_weight.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_side_of_every_benchmark_passes(options, dtype):
    for problem in all_cases(options, dtype):
        want = problem.truth()
        checked = 0
        for side in problem.sides:
            if side.run is not None:
                tolerance = (OURS if side.ours else RIVALS)[DTYPES[dtype]]
                assert tolerance.refuses(want.errors(side.run())) == [], (problem.operation, side)
                checked += 1
        assert checked >= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["logp", "entropy", "grad_hidden", "grad_weight"])
@pytest.mark.parametrize("fault", ["scaled", "one element", "nan"])
def test_a_planted_fault_is_refused(options, dtype, name, fault):
    problem = logprob_case(options, dtype)
    side = next(side for side in problem.sides if side.name == "ours-reference")
    result = side.run()
    wrong = (result.values[name] if name in result.values else getattr(result, name)).clone()
    if fault == "scaled":
        wrong *= 1.02
    elif fault == "one element":
        wrong.view(-1)[7] += 0.05 * wrong.abs().max()
    else:
        wrong.view(-1)[7] = torch.nan
    if name in result.values:
        result = result._replace(values={**result.values, name: wrong})
    else:
        result = result._replace(**{name: wrong})
    assert OURS[DTYPES[dtype]].refuses(problem.truth().errors(result)) == [name]


def test_a_gradient_at_a_position_without_loss_is_refused(options):
    problem = bench_hybrid_loss.make_case(STEP, "fp32", options)
    result = problem.sides[0].run()
    prompt = result.grad_hidden[0]
    assert bool((prompt == 0).all())
    prompt += result.grad_hidden.abs().max()
    assert OURS[torch.float32].refuses(problem.truth().errors(result)) == ["grad_hidden"]


def test_a_missing_value_is_not_compared():
    assert Tolerance(value=1.0, gradient=1.0).refuses({}) == []
    assert Tolerance(value=1.0, gradient=1.0).refuses({"logp": float("nan")}) == ["logp"]


def planted(problem: case.Case, name: str, run) -> case.Case:
    """The case with another run for one side; ``run`` takes the right one."""
    problem.sides = [
        replace(side, run=lambda honest=side.run: run(honest)) if side.name == name else side
        for side in problem.sides
    ]
    return problem


def doubled(honest):
    return honest()._replace(grad_weight=2 * honest().grad_weight)


def test_a_wrong_side_of_ours_ends_the_run_before_any_timing(options, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError("timed after a failed gate")

    monkeypatch.setattr(timing, "paired", never)
    problem = planted(logprob_case(options), "ours-reference", doubled)
    assert case.run_cases("linear_logprob", [lambda: problem], options) == 1
    assert "ours-reference is off in grad_weight" in capsys.readouterr().err
    assert list(options.directory.iterdir()) == []


def test_an_exception_of_ours_is_not_swallowed(options):
    def broken(honest):
        raise ValueError("shapes do not fit")

    with pytest.raises(ValueError, match="shapes do not fit"):
        case.measure(planted(logprob_case(options), "ours-reference", broken), options)


def test_a_wrong_rival_is_named_and_not_timed(options, capsys):
    problem = planted(logprob_case(options), "torch", doubled)
    assert case.run_cases("linear_logprob", [lambda: problem], options) == 0
    (record,) = load("linear_logprob", options.directory)["cases"]
    assert record["sides"]["torch"]["outcome"] == "wrong"
    assert record["sides"]["torch"]["errors"]["grad_weight"] > 0.5
    assert "wall_s" not in record["sides"]["torch"]
    assert record["sides"]["ours-reference"]["wall_s"] > 0
    assert "wrong result, not timed" in capsys.readouterr().out


def test_a_rival_that_raises_is_named_and_the_run_goes_on(options):
    def broken(honest):
        raise RuntimeError("no kernel for this device\nand a long explanation")

    record = case.measure(planted(logprob_case(options), "torch", broken), options)
    assert record["sides"]["torch"]["outcome"] == "error"
    assert record["sides"]["torch"]["detail"] == "RuntimeError: no kernel for this device"
    assert "wall_s" in record["sides"]["ours-reference"]


def test_quick_skips_compiled_providers_unless_named():
    quick = Options(quick=True, rounds=2)
    sides = bench_linear_logprob.make_case(SMALL, "fp32", "logp", quick).sides
    (compiled,) = (side for side in sides if side.name == "torch-compile")
    assert compiled.run is None and "compiling" in compiled.reason
    asked = replace(quick, providers=("torch-compile",))
    (compiled,) = bench_linear_logprob.make_case(SMALL, "fp32", "logp", asked).sides
    assert compiled.run is not None


def test_the_released_order_of_operations_computes_the_same_loss():
    step = bench_hybrid_loss.Step(HYBRID["quick"], torch.float32)
    ours, theirs = step.ours("cpu")(), step.released()
    torch.testing.assert_close(ours.values["loss"], theirs.values["loss"], rtol=0, atol=2e-6)
    for a, b in ((ours.grad_hidden, theirs.grad_hidden), (ours.grad_weight, theirs.grad_weight)):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
