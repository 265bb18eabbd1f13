"""``wavalign-fast plan``: what it prints, what it advises, and what it refuses."""

import json
import sys

import pytest

from tests.plan.tiny import write_config
from wavalign_fast.cli import main

SMALL = dict(hidden_size=64, num_hidden_layers=1)
LARGE = dict(
    vocab_size=30_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=1,
    num_attention_heads=8, num_key_value_heads=2,
)  # fmt: skip
SHARDED = ["parallel.head=sharded"]
RUN = ["--recipe", "spoken-sums", "rollout.max_new_tokens=512", "train.block_tokens=4096"]


def plan(capsys, directory, *words) -> str:
    assert main(["plan", *RUN, f"model.path={directory}", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_config(root / "small", **SMALL)
    write_config(root / "large", **LARGE)
    write_config(root / "tied", **SMALL, tie_word_embeddings=True)
    return root


def test_a_run_that_fits(capsys, directories, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = plan(capsys, directories / "small")
    assert "FITS in 80 GiB" in out
    assert "What helps" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_tied_model_on_one_gpu_is_planned(capsys, directories):
    assert "FITS in 80 GiB" in plan(capsys, directories / "tied")


def test_numbers_as_json(capsys, directories):
    found = json.loads(plan(capsys, directories / "small", "--json", "--ranks", "2"))
    assert (found["ranks"], found["fits"], found["changes"]) == (2, True, [])
    assert list(found["phases"]) == ["training", "update", "rollout"]
    for phase in found["phases"].values():
        assert phase["needed_bytes"] > 2 * 2**30 + sum(phase["tensors_bytes"].values())
        assert phase["tensors_bytes"]["optimizer"] >= 2 * phase["tensors_bytes"]["weights"]
    assert found["needed_bytes"] == max(p["needed_bytes"] for p in found["phases"].values())


def test_a_compute_dtype_of_its_own_is_planned(capsys, directories):
    words = ("--json", "model.compute_dtype=bfloat16")
    phases = json.loads(plan(capsys, directories / "small", *words))["phases"]
    held = phases["rollout"]["tensors_bytes"]
    assert held["whole copy for rollouts"] == held["weights"] / 2
    assert "whole copy for rollouts" not in phases["training"]["tensors_bytes"]
    words += ("rollout.keep_copy=true",)
    kept = json.loads(plan(capsys, directories / "small", *words))["phases"]
    assert kept["rollout"] == phases["rollout"]
    assert all("whole copy for rollouts" in phase["tensors_bytes"] for phase in kept.values())


def test_a_dtype_of_rollouts_is_planned(capsys, directories):
    words = ("--json", "rollout.dtype=bfloat16")
    phases = json.loads(plan(capsys, directories / "small", *words))["phases"]
    held = phases["rollout"]["tensors_bytes"]
    assert held["whole copy for rollouts"] == held["weights"] / 2


def test_vllm_samples_in_its_own_memory_and_evaluations_here(capsys, directories):
    words = ("--ranks", "2", "model.compute_dtype=bfloat16", "rollout.engine=vllm")
    server = "rollout.vllm.url=http://127.0.0.1:8000"

    def planned(*more: str) -> dict:
        return json.loads(plan(capsys, directories / "small", *words, *more, "--json"))["phases"]

    assert list(planned(server, "train.eval_items=0")) == ["training", "update"]
    evaluated = planned(server, "train.eval_items=3")["evaluation"]["tensors_bytes"]
    own = planned("rollout.engine=builtin")["rollout"]["tensors_bytes"]
    assert evaluated["whole copy for evaluations"] == own["whole copy for rollouts"]
    assert 0 < evaluated["keys and values"] < own["keys and values"]
    assert "whose memory is not counted" in plan(capsys, directories / "small", *words, server)
    assert "gpu_memory_utilization" in plan(capsys, directories / "small", *words)


def test_what_to_change_is_estimated_like_the_run_itself(capsys, directories):
    words = ("--gpu-memory", "4", "--json")
    found = json.loads(plan(capsys, directories / "large", *words))
    assert not found["fits"]
    change = next(change for change in found["changes"] if change["fits"])
    after = json.loads(plan(capsys, directories / "large", *words, *change["words"]))
    assert after["fits"]
    assert after["needed_bytes"] == change["needed_bytes"] < found["needed_bytes"]


def test_more_ranks_are_advised_where_the_shards_are_fixed(capsys, directories):
    run = (directories / "large", "--json", "--gpu-memory", "3.5")
    found = json.loads(plan(capsys, *run, "--ranks", "2", "parallel.shard=2"))
    change = next(c for c in found["changes"] if c["words"][0].startswith("--ranks"))
    ranks, setting = change["words"]
    after = json.loads(plan(capsys, *run, *ranks.split(), setting))
    assert after["needed_bytes"] == change["needed_bytes"] < found["needed_bytes"]
    assert after["ranks"] > 2


def test_a_sharded_head_is_planned_and_advised(capsys, directories):
    words = ("--json", "--ranks", "64", "train.block_tokens=512")
    whole = json.loads(plan(capsys, directories / "large", *words))
    words += ("--gpu-memory", str(whole["needed_bytes"] / 2**30 - 0.01))
    found = json.loads(plan(capsys, directories / "large", *words))
    assert not found["fits"]
    advised = [change for change in found["changes"] if change["words"] == SHARDED]
    after = json.loads(plan(capsys, directories / "large", *words, *SHARDED))
    assert [after["needed_bytes"]] == [change["needed_bytes"] for change in advised]
    assert after["needed_bytes"] < whole["needed_bytes"]
    assert "head sharded" in plan(capsys, directories / "large", "--ranks", "64", *SHARDED)


LORA = ("model.lora.rank=4", "model.lora.targets=[q_proj]")


def test_adapters_are_planned(capsys, directories):
    pytest.importorskip("peft")
    words = ("--json", "model.compute_dtype=bfloat16", "loss.text_kl=0.1")
    whole = json.loads(plan(capsys, directories / "large", *words))
    found = json.loads(plan(capsys, directories / "large", *words, *LORA))
    assert found["trained_parameters"] == 4 * (1024 + 1024)
    assert found["parameters"] == whole["parameters"] + found["trained_parameters"]
    assert whole["trained_parameters"] == whole["parameters"]
    held, before = (it["phases"]["update"]["tensors_bytes"] for it in (found, whole))
    assert before["reference"] == before["weights"] / 2
    assert "reference" not in held
    assert held["gradients"] == 4 * found["trained_parameters"]
    assert found["needed_bytes"] < whole["needed_bytes"]
    assert "8192 of adapters" not in plan(capsys, directories / "large")
    assert "0.01 M of adapters trained" in plan(capsys, directories / "large", *LORA)


def test_adapters_are_advised_last_and_only_where_they_can_be_had(capsys, directories, monkeypatch):
    pytest.importorskip("peft")
    words = ("--gpu-memory", "2.3", "--json", "train.block_tokens=512")
    words += ("rollout.group_size=2", "rollout.prompts=1", "rollout.max_new_tokens=8")
    found = json.loads(plan(capsys, directories / "large", *words))
    change = found["changes"][-1]
    assert "model.lora.rank=64" in change["words"]
    after = json.loads(plan(capsys, directories / "large", *words, *change["words"]))
    assert after["needed_bytes"] == change["needed_bytes"] < found["needed_bytes"]
    monkeypatch.setitem(sys.modules, "peft", None)
    without = json.loads(plan(capsys, directories / "large", *words))
    assert not any("lora" in str(change["words"]) for change in without["changes"])
    assert main(["plan", *RUN, *LORA, f"model.path={directories / 'large'}"]) == 2
    assert "model.lora: adapters need the package peft" in capsys.readouterr().err


def test_a_tied_head_is_not_sharded(capsys, directories):
    path = f"model.path={directories / 'tied'}"
    assert main(["plan", *RUN, path, "--ranks", "2", *SHARDED]) == 2
    assert "parallel.head: sharded output head: got a head tied" in capsys.readouterr().err
    words = ("--json", "--ranks", "2", "--gpu-memory", "2.001")
    changes = json.loads(plan(capsys, directories / "tied", *words))["changes"]
    assert changes and not any("parallel.head=sharded" in change["words"] for change in changes)


def test_the_trace_is_left_out_where_what_lasts_is_too_much(capsys, directories):
    out = plan(capsys, directories / "large", "--gpu-memory", "2.1", "--ranks", "64")
    assert "DOES NOT FIT in 2.1 GiB: at least" in out
    assert "training" not in out


def test_the_recipe_s_own_model(capsys):
    assert main(["plan", "--recipe", "spoken-sums"]) == 0
    assert "spoken-sums: 0.93 M weights in float32, adamw, 1 rank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--ranks", "0"], "'0' given, wanted a whole number >= 1"),
        (["--gpu-memory", "lots"], "'lots' given, wanted GiB, e.g. 80"),
        (["model.path=nowhere"], "no config.json in nowhere"),
        (["train.block=3"], "unknown key train.block"),
    ],
)
def test_mistakes_are_named(capsys, words, reason):
    try:
        status = main(["plan", *RUN, *words])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", '{"model_type": "t5"}', '{"model_type": "none such"}'])
def test_a_config_that_cannot_be_used(capsys, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert main(["plan", *RUN, f"model.path={tmp_path}"]) == 2
    assert str(tmp_path / "config.json") in capsys.readouterr().err
