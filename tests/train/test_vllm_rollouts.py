"""Training with rollouts by a server that speaks vLLM's routes and has the weights it got."""

import sys
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from tests.rollout.vllm_loopback import LoopbackVLLM
from wavalign_fast.errors import UserError
from wavalign_fast.models import PromptEmbeddings
from wavalign_fast.train import engines
from wavalign_fast.train.model_setup import prepare_model
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.run_directory import check_run, start_run
from wavalign_fast.train.step import TrainStep


@pytest.fixture
def loopback():
    with LoopbackVLLM() as server:
        yield server


def by(loopback, *more: str) -> list[str]:
    return [
        "rollout.engine=vllm",
        f"rollout.vllm.url={loopback.url}",
        "rollout.vllm.timeout_s=20",
        "train.steps=3",
        "loss.policy_scope=all",
        "loss.normalisation=token",  # rows without an advantage are computed, too
        *more,
    ]


def test_the_server_samples_by_the_weights_of_each_step(
    loopback, train, metrics_of, tmp_path
) -> None:
    shared = tmp_path / "shared"
    train(*by(loopback, f"rollout.vllm.weights_dir={shared}", "rollout.temperature=0.8"))
    records = metrics_of(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["logp_diff/text_mean"] < 1e-5
        assert record["logp_diff/speech_mean"] < 1e-5
        assert record["rollout/staleness_mean"] == record["rollout/staleness_max"] == 0
    assert len({str(path) for path in loopback.loaded}) == 3
    assert all(path.parent == shared for path in loopback.loaded)
    assert list(shared.iterdir()) == []  # the files go when they are not needed
    assert len(loopback.bodies) == 3 * 3
    assert not loopback.paused


def test_the_answers_are_what_is_learnt_from(loopback, toy_task, make_config) -> None:
    task = toy_task()
    model = task.load_model()
    config = make_config(*by(loopback), "loss.mixing=1", "anchor.rows=0")
    step = TrainStep(config, task, Policy(model), None, Ranks())
    batch = step.prepare(task.train_examples[:3], 1, Stopwatch())
    for done in batch.completions:
        ids = torch.tensor([[*done.example.prompt_ids, *done.ids]])
        logits = model(ids).logits[0, len(done.example.prompt_ids) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(done.ids)[:, None])[:, 0]
        torch.testing.assert_close(done.logps, wanted.detach(), rtol=0, atol=1e-5)
    sent = sorted(tuple(body["token_ids"]) for body in loopback.bodies)
    assert sent == sorted(example.prompt_ids for example in task.train_examples[:3])
    step.collect.engine.close()


def test_old_weights_serve_some_steps_and_are_weighed(
    loopback, train, metrics_of, tmp_path
) -> None:
    keys = ["rollout.vllm.update_every=2", "rollout.vllm.max_staleness=1"]
    keys += ["loss.importance_cap=2", "rollout.vllm.max_logp_diff=5", "optimizer.lr=3e-2"]
    train(*by(loopback, *keys))
    records = metrics_of(tmp_path / "run")
    assert [record["rollout/staleness_max"] for record in records] == [0, 1, 0]
    assert len(loopback.loaded) == 2
    gaps = [record["logp_diff/all_mean"] for record in records]
    assert max(gaps[0], gaps[2]) < 1e-5 < gaps[1]


def test_a_server_that_keeps_old_weights_is_refused(loopback, train) -> None:
    load = loopback.load
    loopback.load = lambda path: load(path) if len(loopback.loaded) < 1 else {"results": [None]}
    with pytest.raises(UserError, match=r"step 2 .*Δ log p.*wanted at most 0\.001 .*max_logp_diff"):
        train(*by(loopback, "rollout.vllm.max_logp_diff=0.001", "optimizer.lr=3e-1"))


def test_raw_log_probs_are_refused(loopback, train) -> None:
    """At another temperature than 1 they are not those that the ids were sampled with."""

    def raw(choices):
        for choice in choices:
            for entry in choice["logprobs"]["content"]:
                entry["logprob"] *= 0.8
        return choices

    loopback.change = raw
    with pytest.raises(UserError, match="processed_logprobs"):
        train(*by(loopback, "rollout.temperature=0.7"))


def test_a_server_that_ends_ends_the_run(loopback, train, tmp_path) -> None:
    generate = loopback.generate

    def once(body):
        if len(loopback.bodies) >= 3:
            loopback.dead = True
            return 500, {"error": {"message": "EngineCore encountered an issue"}}
        return generate(body)

    loopback.generate = once
    with pytest.raises(UserError, match=r"step 2.*checkpoint of step 1 saved.*500.*engine is dead"):
        train(*by(loopback))
    assert (tmp_path / "run" / "checkpoint").exists()


def test_preferences_are_made_of_its_completions(loopback, train, metrics_of, tmp_path) -> None:
    train(*by(loopback, "method=dpo", "dpo.min_gap=0", "train.steps=2"))
    records = metrics_of(tmp_path / "run")
    assert records[0]["pairs/online"] == 3
    assert [record["rollout/staleness_max"] for record in records] == [0, 0]


def test_adapters_are_merged_for_the_server(loopback, train, metrics_of, tmp_path) -> None:
    train(*by(loopback, "model.lora.rank=2", "optimizer.lr=3e-2", "train.steps=3"))
    gaps = [record["logp_diff/all_mean"] for record in metrics_of(tmp_path / "run")]
    assert max(gaps) < 1e-5


def test_a_server_takes_no_prompts_with_vectors(loopback, toy_task, make_config) -> None:
    task = toy_task()
    task.prompt_embeddings = PromptEmbeddings(64)  # a family that hears codes names none
    engines.rollout_engine(make_config(*by(loopback)), task, None, Ranks()).close()
    task.prompt_embeddings.ids("clip", 3, lambda: torch.zeros(3, 8))
    with pytest.raises(UserError, match=r"rollout\.vllm\.url: http.*vectors.*wanted null"):
        engines.rollout_engine(make_config(*by(loopback)), task, None, Ranks())


def test_in_this_process_there_is_one_rank(toy_task, make_config, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", type(sys)("vllm"))
    monkeypatch.setattr(Ranks, "failing_together", lambda self: nullcontext())
    config = make_config("rollout.engine=vllm")
    with pytest.raises(UserError, match=r"rollout.vllm.url: null given for 2 ranks"):
        engines.rollout_engine(config, toy_task(), None, Ranks(0, 2))


@pytest.mark.parametrize(
    "change",
    [
        "rollout.vllm.url=http://127.0.0.1:2",
        "rollout.vllm.command=[vllm, serve, --quiet]",
        "rollout.vllm.options={max_num_seqs: 8}",
        "rollout.vllm.weights_dir=elsewhere",
        "rollout.vllm.timeout_s=7",
        "rollout.vllm.start_timeout_s=7",
    ],
)
def test_a_resumed_run_may_find_its_server_elsewhere(change, tmp_path, make_config) -> None:
    server = ["rollout.engine=vllm", "rollout.vllm.url=http://127.0.0.1:1"]
    server += ["rollout.vllm.command=[vllm, serve]", "rollout.vllm.options={max_num_seqs: 4}"]
    start_run(tmp_path / "run", make_config(*server), data={})
    check_run(tmp_path / "run", make_config(*server, change), resume=True, overwrite=False)
    for other in ("rollout.vllm.top_p=0.9", "rollout.engine=builtin"):
        changed = make_config(other) if other.endswith("builtin") else make_config(*server, other)
        with pytest.raises(UserError, match="another rollout"):
            check_run(tmp_path / "run", changed, resume=True, overwrite=False)


def steps_on_ranks(config, task, broken: bool):
    """Metrics of two steps of this rank, and the error that ended it."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    policy = wrapped(Policy(prepare_model(task.load_model(), config.model)), config.parallel, ranks)
    step = TrainStep(config, task, policy, None, ranks)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    found = []
    try:
        for number in (1, 2):
            batch = step.prepare(task.train_examples[:3], number, Stopwatch())
            metrics = step.backward(batch, Stopwatch()).metrics
            optimizer.step()
            optimizer.zero_grad()
            found.append([metrics["logp_diff/all_mean"], metrics["rollout/staleness_max"]])
    except UserError as error:
        return [found, str(error)]
    finally:
        step.collect.engine.close()
    return [found, ""]


@pytest.mark.parametrize("broken", [False, True])
def test_each_rank_asks_for_its_prompts(broken, loopback, toy_task, make_config) -> None:
    task = toy_task()
    if broken:  # the prompt of the second rank alone
        task.train_examples[1] = task.train_examples[1].__class__(
            id="1", prompt="", prompt_ids=(2, 99), reference=""
        )
    config = make_config(*by(loopback), "loss.mixing=1", "anchor.rows=0")
    found = run_ranks(2, steps_on_ranks, config, task, broken)
    if broken:
        assert "id 99" in found[1][1]
        assert found[0][1] == f"rank 1 of 2 failed: {found[1][1]}"
        assert found[0][0] == []
        return
    assert found[0] == found[1]
    assert [age for _, age in found[0][0]] == [0, 0]
    assert max(gap for gap, _ in found[0][0]) < 1e-5
    assert len(loopback.bodies) == 6
    assert len(loopback.loaded) == 2
