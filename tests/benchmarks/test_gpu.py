"""The part of a benchmark that needs a GPU: CUDA graphs, checked like every other result."""

import gc
import weakref
from dataclasses import replace
from unittest import mock

import pytest
import torch

from benchmarks import bench_hybrid_loss, bench_linear_logprob, case, gpu, providers, timing
from benchmarks.options import Options
from benchmarks.providers import available
from benchmarks.report.tables import text_table
from benchmarks.shapes import LOGPROB, QUICK
from tests.benchmarks import synthetic

SMALL = replace(LOGPROB["quick"], rows=24, hidden=16, vocab=203, speech=(100, 203))
OPTIONS = Options(providers=("ours-cpu", "ours-reference", "torch"), rounds=2)


@pytest.fixture
def problem() -> case.Case:
    return bench_linear_logprob.make_case(SMALL, "fp32", "logp", OPTIONS)


@pytest.fixture
def fake_graphs(monkeypatch) -> None:
    """Replaces captures by calls, and the GPU's clock by the host's."""
    monkeypatch.setattr(case, "CAPTURES_MAY_FAIL", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu, "release_memory", lambda: None)
    monkeypatch.setattr(gpu, "captured", lambda run: (run, run()))
    monkeypatch.setattr(gpu, "describe", lambda: {"gpu": "none"})
    monkeypatch.setattr(timing, "CudaClock", timing.HostClock)


def as_on_a_gpu(problem: case.Case) -> dict:
    """The record's sides; the operands stay on the CPU."""
    copy = mock.patch.object(timing, "copy_side", lambda device: lambda: None)
    with copy, mock.patch.object(timing, "COPY_BYTES", 0):
        return case.measure(problem, replace(OPTIONS, device="cuda"))["sides"]


def test_a_replay_is_checked_like_the_run(problem, monkeypatch, fake_graphs):
    found = iter(["right", "waits", "wrong"])

    def captured(run):
        result, kind = run(), next(found)
        if kind == "waits":
            raise RuntimeError("operation not permitted when stream is capturing\nhint")
        if kind == "wrong":
            result.grad_weight.zero_()
        return run, result

    monkeypatch.setattr(gpu, "captured", captured)
    sides = as_on_a_gpu(problem)
    graphs = [sides[name]["graph"] for name in OPTIONS.providers]
    assert [graph["outcome"] for graph in graphs] == ["right", "error", "wrong"]
    assert [graph.get("wall_s", 0) > 0 for graph in graphs] == [True, False, False]
    assert "not permitted" in graphs[1]["detail"]
    # A graph is timed beside the three GEMMs only.
    assert list(graphs[0]["wall_ratio_to"]) == [case.BOUND] and "graph" not in sides[case.BOUND]


def test_a_wrong_replay_of_ours_ends_the_run(problem, monkeypatch, fake_graphs):
    def captured(run):
        result = run()
        return run, result._replace(grad_hidden=result.grad_hidden * 1.01)

    monkeypatch.setattr(gpu, "captured", captured)
    with pytest.raises(case.WrongResultError, match="ours-cpu is off in grad_hidden"):
        as_on_a_gpu(problem)
    assert gc.get_freeze_count() == 0


def test_one_graph_is_alive_at_a_time(problem, monkeypatch, fake_graphs):
    """Each keeps all the memory of a step; at large heads, several exceed the memory of a GPU."""
    alive: weakref.WeakSet = weakref.WeakSet()
    most = []

    class Graph:
        def __init__(self, run):
            self.run = run
            alive.add(self)

        def __call__(self):
            most.append(len(alive))
            return self.run()

    left: list[int] = []
    monkeypatch.setattr(gpu, "captured", lambda run: (Graph(run), run()))
    monkeypatch.setattr(gpu, "release_memory", lambda: left.append(len(alive)))
    sides = as_on_a_gpu(problem)
    assert all(sides[name]["graph"]["wall_s"] > 0 for name in OPTIONS.providers)
    # None is alive when its memory is released.
    assert set(most) == {1} and left == [0] * len(OPTIONS.providers)


def test_the_table_has_a_column_for_graphs_where_there_are_any():
    found = synthetic.case({"torch": 2.0})
    assert "as a graph" not in text_table(found)
    found["sides"]["ours-cpu"]["graph"] = {"outcome": "right", "wall_s": 0.25}
    assert "as a graph" in text_table(found) and "250 ms" in text_table(found)


def test_only_safe_sides_are_captured_where_a_failure_breaks_torch(
    problem, monkeypatch, fake_graphs
):
    monkeypatch.setattr(case, "CAPTURES_MAY_FAIL", False)
    monkeypatch.setattr(case, "CAPTURABLE", ("ours-cpu",))
    sides = as_on_a_gpu(problem)
    assert sides["ours-cpu"]["graph"]["outcome"] == "right"
    assert sides["torch"]["graph"]["detail"] == "not tried with this torch"
    assert "wall_s" in sides["torch"] and "wall_s" not in sides["torch"]["graph"]


@pytest.mark.gpu
def test_the_memory_of_a_dropped_graph_comes_back():
    gpu.release_memory()
    before = torch.cuda.memory_reserved()
    replay, result = gpu.captured(lambda: torch.ones(2**26, device="cuda") * 2)
    replay()
    assert torch.cuda.memory_reserved() >= before + 2**28
    del replay, result
    gpu.release_memory()
    assert torch.cuda.memory_reserved() <= before + 2**22


@pytest.mark.gpu
def test_a_capture_replays():
    x = torch.ones(1000, device="cuda")
    replay, result = gpu.captured(lambda: x * 2)
    x.fill_(3.0)
    replay()
    assert result.eq(6.0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not case.CAPTURES_MAY_FAIL, reason="this torch does not get over it")
def test_a_capture_refuses_to_wait():
    x = torch.full((1000,), 3.0, device="cuda")
    with pytest.raises(RuntimeError):
        gpu.captured(lambda: x.sum().item())
    torch.cuda.synchronize()
    assert x.sum().item() == 3000.0  # the device goes on after a refused capture


@pytest.mark.gpu
def test_the_clock_tells_the_time_of_the_device():
    clock = gpu.CudaClock()
    a = torch.randn(4096, 4096).to("cuda")
    clock.time(lambda: a @ a)  # loads the library's kernel, which takes longer than to run it
    once, _ = clock.time(lambda: a @ a)
    often, _ = clock.time(lambda: [a @ a for _ in range(8)])
    assert often > 4 * once > 0
    assert clock.peak_extra_bytes(lambda: a + 1) == a.numel() * 4


def test_a_gpu_has_our_backends_and_the_kernels_of_rivals():
    on_gpu = [loaded.provider.name for loaded in available(device="cuda")]
    assert on_gpu[:2] == ["ours-cuda", "ours-triton"]
    assert {"verl-triton", "cce-triton"} <= set(on_gpu)
    assert not {"ours-cpu", "cce"} & set(on_gpu)
    with pytest.raises(ValueError, match="got 'cce-triton', want one of ours-cpu"):
        available(["cce-triton"])


@pytest.mark.parametrize("error", [ImportError("no x"), AttributeError("y\nz"), OSError("libz")])
def test_a_rival_that_fails_at_import_in_any_way_is_absent(error):
    def load():
        raise error

    trl = replace(next(p for p in providers.PROVIDERS if p.name == "trl"), load=load)
    with mock.patch.object(providers, "PROVIDERS", (trl,)):
        (loaded,) = available(["trl"], device="cuda")
    assert loaded.calls is None and str(error) in loaded.reason
    ours = replace(trl, name="ours-cuda", requirement=None)
    with mock.patch.object(providers, "PROVIDERS", (ours,)):
        if isinstance(error, ImportError):
            assert available(["ours-cuda"], device="cuda")[0].calls is None
        else:  # a fault of ours is not hidden
            with pytest.raises(type(error)):
                available(["ours-cuda"], device="cuda")


def test_a_hybrid_step_on_a_gpu_is_one_call_of_each_backend():
    shape = replace(QUICK, hidden=32, vocab=600, speech=(400, 600), boundary=(398, 399))
    step = bench_hybrid_loss.Step(shape, torch.float32)
    sides = list(bench_hybrid_loss._sides(step, Options(device="cuda")))
    ours = [side for side in sides if side.ours]
    assert [side.name for side in ours] == ["ours-cuda", "ours-triton"]
    assert all(side.run is None and side.reason for side in ours)  # no GPU here
    options = step.objective("cuda").options
    assert (options.backend, options.live_rows) == ("cuda", len(step.live()))
