"""What a step costs is measured, and the main rank alone writes it."""

import gzip
import io
import json

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from tests.ranks import run_ranks
from wavalign_fast.config.telemetry import TelemetryConfig
from wavalign_fast.data.records import Completion, Example
from wavalign_fast.train import telemetry
from wavalign_fast.train.flops import StepTokens, mfu, model_size, step_flops
from wavalign_fast.train.memory import memory_in_use
from wavalign_fast.train.owned_files import own_paths
from wavalign_fast.train.profile_window import ProfileWindow
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step_work import step_work
from wavalign_fast.train.telemetry import Telemetry
from wavalign_fast.train.token_blocks import LossIds, Row

WORK = StepTokens(trained=(7, 5), live=4, prompts=(3,), completions=((3, 4), (3, 2)))
CHECKED = {
    "tensorboard": "test_without_tensorboard_there_are_no_event_files",
    "tracker": "test_trackers.py",
    "project": "test_trackers.py",
    "offline": "test_trackers.py",
    "profile_steps": "test_a_window_of_steps_is_profiled",
}
"""Where each key's effect is tested."""


def test_every_key_has_a_test_of_its_effect():
    assert set(CHECKED) == set(TelemetryConfig.model_fields)


def opened(directory, make_config, model, *overrides: str, ranks: Ranks | None = None):
    console = Console(file=io.StringIO(), width=200)
    config = make_config(*overrides)
    return Telemetry(config, directory, ranks or Ranks(), model, done=0, console=console)


def test_a_run_reports_its_rates_and_its_memory(train, metrics_of, tmp_path):
    train("train.steps=2")
    for line in metrics_of(tmp_path / "run"):
        assert line["tokens_per_s"] > 0 and line["perf/model_tflops_per_rank"] > 0
        assert 1e7 < line["memory/rss_bytes"] < 1e11
        assert "tokens_per_s_per_rank" not in line  # it would repeat tokens_per_s
        assert "perf/mfu" not in line  # nobody publishes the peak of this processor


def test_rates_are_per_second_and_per_rank_and_a_share_of_the_peak(
    tmp_path, make_config, toy_task, monkeypatch
):
    model = toy_task().load_model()
    monkeypatch.setattr(telemetry, "_peak", lambda device, config: 1e12)
    seen = opened(tmp_path, make_config, model).measured(WORK, tokens=300, elapsed=0.5)
    flops = step_flops(model_size(model), WORK).model
    assert seen["tokens_per_s"] == 600
    assert seen["perf/model_tflops_per_rank"] == pytest.approx(flops / 0.5 / 1e12)
    assert seen["perf/mfu"] == pytest.approx(mfu(flops, 0.5, 1e12))


def test_the_peak_is_that_of_the_ranks_gpu_and_of_the_dtype(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    gpu, half = torch.device("cuda", 0), "model.dtype=bfloat16"
    assert telemetry._peak(gpu, make_config(half)) == pytest.approx(989.4e12)
    assert telemetry._peak(gpu, make_config()) == pytest.approx(66.9e12)
    mixed = make_config("model.compute_dtype=bfloat16")
    assert telemetry._peak(gpu, mixed) == pytest.approx(989.4e12)
    assert telemetry._peak(torch.device("cpu"), make_config(half)) is None


def test_a_model_that_cannot_be_counted_has_its_other_rates(tmp_path, make_config, caplog):
    model = torch.nn.Linear(2, 2)  # has no config
    seen = opened(tmp_path, make_config, model).measured(WORK, tokens=300, elapsed=0.5)
    assert seen["tokens_per_s"] == 600 and "perf/model_tflops_per_rank" not in seen
    assert "no model flops" in caplog.text


def test_memory_of_a_gpu_is_the_peak_since_the_last_call(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 4 << 30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    device = torch.device("cuda", 1)
    seen = memory_in_use(device)
    assert (seen["memory/peak_bytes"], seen["memory/reserved_bytes"]) == (3 << 30, 4 << 30)
    assert calls == [device] and set(memory_in_use(torch.device("cpu"))) == {"memory/rss_bytes"}


def test_rss_grows_with_what_is_used_and_not_with_what_is_only_reserved():
    def rss() -> float:
        return memory_in_use(torch.device("cpu"))["memory/rss_bytes"]

    before = rss()
    block = torch.empty(32 << 20)  # 128 MiB that no one has written to
    assert rss() - before < 0.2 * block.nbytes
    block.fill_(1.0)
    assert 0.8 * block.nbytes < rss() - before < 1.5 * block.nbytes


def test_the_work_of_a_step():
    ids = LossIds(policy=[True, False, True], anchor=[False, True, True])
    rows = [Row(0, True, (0, 0, 0), (0, 1, 2)), Row(1, False, (0, 0), (1, 2, 0, 1))]
    example = Example(id="a", prompt="p", prompt_ids=(0, 0, 0), reference="")
    completions = [Completion(example=example, ids=(0,) * n, ended=True) for n in (3, 5)]
    work = step_work(rows, completions, loss_ids=ids, group_size=2, scored=1)
    assert work == StepTokens(
        trained=[5, 5],
        live=2 + 3,
        scored=[5],
        scored_live=3,
        prompts=[3],
        completions=[(3, 3), (3, 5)],
    )
    assert step_work(rows, [], loss_ids=ids, group_size=2, scored=0).scored == []


def two_ranks(directory, make_config, toy_task):
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            telemetry, "memory_in_use", lambda device: {"memory/rss_bytes": 10.0 + ranks.rank}
        )
        model = toy_task().load_model()
        with opened(directory, make_config, model, "train.log_every=1", ranks=ranks) as reporting:
            reporting.before_step(1)
            seen = reporting.measured(WORK, tokens=300, elapsed=0.5)
            reporting.after_step(1, 0.5, seen)
    return seen, reporting.console.file.getvalue()


def test_of_two_ranks_one_writes_and_the_larger_memory_is_told(tmp_path, make_config, toy_task):
    (main, printed), (_, silent) = run_ranks(2, two_ranks, tmp_path, make_config, toy_task)
    assert main["tokens_per_s"] == 600 and main["tokens_per_s_per_rank"] == 300
    assert main["memory/rss_bytes"] == 11
    (line,) = (tmp_path / "metrics.jsonl").open()
    assert json.loads(line)["tokens_per_s"] == 600
    assert "step 1/4  tokens/s 600" in printed and silent == ""


def one_fails(directory, make_config, toy_task):
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    with pytest.MonkeyPatch.context() as patch:
        if ranks.is_main:
            patch.setattr(telemetry, "open_tensorboard", lambda *given: 1 / 0)
        reporting = opened(directory, make_config, toy_task().load_model(), ranks=ranks)
        with pytest.raises(Exception) as failure, reporting:
            pass
    closed = all(writer._file.closed for writer in reporting._writers)
    return type(failure.value).__name__, closed, len(reporting._writers)


def test_what_fails_on_the_main_rank_fails_on_all_and_is_closed(tmp_path, make_config, toy_task):
    main, other = run_ranks(2, one_fails, tmp_path, make_config, toy_task)
    assert main == ("ZeroDivisionError", True, 1)
    assert other == ("OtherRankError", True, 0)


def traced(path) -> set[str]:
    with gzip.open(path) as file:
        return {event["name"] for event in json.load(file)["traceEvents"]}


def test_a_window_of_steps_is_profiled(train, tmp_path):
    train("telemetry.profile_steps=[2,2]", "train.steps=2")
    run = tmp_path / "run"
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "steps-2-2.json.gz" and "aten::mm" in traced(trace)
    assert run / "profile" in own_paths(run)


def recorded(directory, window, steps) -> list[str]:
    profile = ProfileWindow(window, directory)
    for step in steps:
        profile.before_step(step)
        torch.ones(2).add(1)
        profile.after_step(step)
    profile.close(steps[-1])
    return sorted(path.name for path in directory.glob("profile/*"))


def test_a_run_that_stops_within_the_window_leaves_what_it_recorded(tmp_path):
    assert recorded(tmp_path, (2, 4), [1, 2]) == ["steps-2-2.json.gz"]
    # Continued, it records the rest.
    both = ["steps-2-2.json.gz", "steps-3-4.json.gz"]
    assert recorded(tmp_path, (2, 4), [3, 4, 5]) == both
    assert recorded(tmp_path, (2, 4), [5, 6]) == both
    assert recorded(tmp_path, None, [2, 3]) == both


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    (tmp_path / "profile").write_text("in the way")
    recorded(tmp_path, (1, 1), [1])
    assert "steps-1-1.json.gz cannot be written" in caplog.text


def test_without_tensorboard_there_are_no_event_files(train, tmp_path):
    train("telemetry.tensorboard=false", "train.steps=1")
    assert not (tmp_path / "run" / "tensorboard").exists()
    train("train.steps=1", name="with")
    assert list((tmp_path / "with" / "tensorboard").iterdir())
