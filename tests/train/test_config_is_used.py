"""Every key of a run's configuration has an effect.

The keys of ``optimizer`` are those of the update by hand in ``test_update.py``, those of ``model``
are in ``test_model_setup.py``, those of ``parallel`` in ``test_policy.py``, those of
``telemetry`` in ``test_telemetry.py``, and ``method`` and those of ``dpo`` in
``test_preference_step.py``.
"""

import inspect
import json
import re

import pytest
import yaml

from wavalign_fast import recipes
from wavalign_fast.cli import main
from wavalign_fast.config.dpo import DPOConfig
from wavalign_fast.config.model import ModelConfig
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.config.schema import GateConfig, LossConfig, OptimizerConfig, RunConfig
from wavalign_fast.config.telemetry import TelemetryConfig
from wavalign_fast.losses import HybridObjective, MixingGate
from wavalign_fast.rollout import engine
from wavalign_fast.train import arms, collect, objective, policy
from wavalign_fast.train import trainer as training
from wavalign_fast.train.prompt_sampler import PromptSampler

LOSS = {
    "policy_scope": ("speech", lambda it: scope_of(it.policy_weights)),
    "anchor_scope": ("text", lambda it: scope_of(it.anchor_weights)),
    "text_weight": (2.0, lambda it: it.policy_weights.text),
    "speech_weight": (3.0, lambda it: it.policy_weights.speech),
    "anchor_text_weight": (5.0, lambda it: it.anchor_weights.text),
    "anchor_speech_weight": (7.0, lambda it: it.anchor_weights.speech),
    "text_kl": (0.3, lambda it: it.kl_weights.text),
    "speech_kl": (0.4, lambda it: it.kl_weights.speech),
    "kl_scope": ("completion", lambda it: it.kl_scope),
    "clip": ((0.1, 0.2), lambda it: it.clip),
    "importance_sampling_level": ("sequence", lambda it: it.importance_sampling_level),
    "normalisation": ("token", lambda it: it.normalisation),
    "advantage_std": ("sample", lambda it: it.advantage_std),
    "mixing": (0.25, lambda it: it.gate),
    "gate": (GateConfig(ema=0.5), lambda it: GateConfig(**gate_settings(it.gate))),
    "backend": ("reference", lambda it: it.options.backend),
}
"""For every key a value that is not the default, and how to read it from the objective."""
GATE = {"lambda_max": 0.7, "ema": 0.6, "slope": 2.0, "threshold": 1.5, "variance_scale": 0.5}


def scope_of(weights) -> str:
    return {(True, True): "all", (True, False): "text", (False, True): "speech"}[
        weights.text > 0, weights.speech > 0
    ]


def gate_settings(gate: MixingGate) -> dict:
    return {name: getattr(gate, name) for name in GateConfig.model_fields}


def objective_of(toy_task, loss: dict, *, kl: bool = True):
    return objective.build_objective(LossConfig(**loss), toy_task().layout, kl=kl)


OUTSIDE = {"importance_cap": "test_off_policy.py"}
"""Keys of the loss that are no setting of the objective, and where they are tested."""


@pytest.mark.parametrize("name", sorted(LossConfig.model_fields.keys() - OUTSIDE))
def test_every_key_of_the_loss_reaches_the_objective(toy_task, name):
    value, held = LOSS[name]
    assert value != getattr(LossConfig(), name)
    own = inspect.signature(HybridObjective).parameters.get(name)
    assert own is None or value != own.default
    # A weight has an effect only if its class is in scope.
    scopes = {} if name.endswith("scope") else {"policy_scope": "all", "anchor_scope": "all"}
    assert held(objective_of(toy_task, scopes | {name: value})) == value


@pytest.mark.parametrize("name", GateConfig.model_fields)
def test_every_key_of_the_gate_reaches_the_objective(toy_task, name):
    assert GATE[name] != getattr(GateConfig(), name)
    gate = objective_of(toy_task, {"gate": GateConfig(**{name: GATE[name]})}).gate
    assert gate_settings(gate) == GateConfig().model_dump() | {name: GATE[name]}


def test_without_a_reference_there_is_no_kl(toy_task):
    weights = objective_of(toy_task, {"text_kl": 0.3, "speech_kl": 0.4}, kl=False).kl_weights
    assert (weights.text, weights.speech) == (0.0, 0.0)


RUN = {
    "name": "some-name",
    "recipe": "another-toy",
    "arm": "narrow",
    "task": {"hidden": 8},
    "rollout.prompts": 2,
    "rollout.group_size": 3,
    "rollout.temperature": 0.6,
    "rollout.max_new_tokens": 5,
    "rollout.dtype": "bfloat16",
    "rollout.keep_copy": True,
    "anchor.rows": 4,
    "train.steps": 7,
    "train.updates_per_rollout": 2,
    "train.seed": 11,
    "train.threads": 13,
    "train.log_every": 3,
    "train.eval_items": 1,
    "train.eval_seed": 17,
    "train.eval_every": 6,
    "train.keep_best": "norm",
    "train.best_is": "lowest",
    "train.early_stop": 5,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 3,
    "train.async_checkpoint": True,
    "train.block_tokens": 1,
    "train.max_nonfinite_steps": 19,
}
"""Every other key, each with a different value."""
ELSEWHERE = (DPOConfig, LossConfig, ModelConfig, OptimizerConfig, ParallelConfig, TelemetryConfig)


def leaves(group=RunConfig, prefix: str = ""):
    """Keys and defaults, without those of the loss, the model and the optimizer."""
    for name, field in group.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        if name == "method":
            continue
        if inner is None:
            yield prefix + name, field.default
        elif field.annotation not in ELSEWHERE:
            yield from leaves(field.annotation, f"{prefix}{name}.")


def nested(keys: dict) -> dict:
    tree = {}
    for key, value in keys.items():
        *groups, name = key.split(".")
        group = tree
        for inner in groups:
            group = group.setdefault(inner, {})
        group[name] = value
    return tree


class Spy:
    """Records the effects of the keys of a run."""

    def __init__(self, monkeypatch, toy_task) -> None:
        self.seen = {}
        self.answered, self.saved = [], []
        self.monkeypatch, self.toy_task = monkeypatch, toy_task
        monkeypatch.setattr(recipes, "load_recipe", self.load_recipe)
        monkeypatch.setattr(arms.torch, "set_num_threads", self.note("train.threads"))
        self.wrap(
            training,
            "NonFiniteGuard",
            lambda limit: self.set("train.max_nonfinite_steps", limit),
        )
        self.wrap(
            training,
            "CheckpointStore",
            lambda *args, aside: self.set("train.async_checkpoint", aside),
        )
        self.wrap(engine, "sample_with_logps", self.sampled)
        self.wrap(policy, "hidden_states", self.blocks)
        self.wrap(collect, "Twin", lambda *_, keep, **__: self.set("rollout.keep_copy", keep))
        self.wrap(training, "EvaluationSchedule", self.schedule)
        self.updates = []
        self.wrap(training.Trainer, "_update", lambda it, **rest: self.updates.append(it.step))
        self.wrap(training.Trainer, "save", lambda it: self.saved.append(it.step))

    def wrap(self, owner, name, look) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            look(*args, **kwargs)
            return original(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, wrapped)

    def set(self, key, value) -> None:
        assert self.seen.setdefault(key, value) == value

    def note(self, key):
        return lambda value: self.set(key, value)

    def load_recipe(self, name):
        self.set("recipe", name)
        return {"recipe": name, "arm": "wide"}, {"wide": {}, "narrow": {}}, self.make_task

    def make_task(self, *, hidden: int = 16):
        task = self.toy_task(hidden=hidden)
        self.wrap(task, "demonstrations", lambda given, rng: self.set("anchor.rows", len(given)))
        self.wrap(task, "evaluate", self.evaluation)
        self.wrap(
            task, "rewards", lambda done: self.answered.append([it.example.id for it in done])
        )
        return task

    def evaluation(self, model, *, items, seed) -> None:
        self.set("task", {"hidden": model.config.hidden_size})
        self.set("train.eval_items", items)
        self.set("train.eval_seed", seed)

    def schedule(self, *, every, metric, best_is, patience) -> None:
        self.set("train.eval_every", every)
        self.set("train.keep_best", metric)
        self.set("train.best_is", best_is)
        self.set("train.early_stop", patience)

    def sampled(self, model, prompts, *, group_size, temperature, max_new_tokens, **rest) -> None:
        self.set("rollout.prompts", len(prompts))
        self.set("rollout.group_size", group_size)
        self.set("rollout.temperature", temperature)
        self.set("rollout.max_new_tokens", max_new_tokens)
        self.set("rollout.dtype", str(model.dtype).removeprefix("torch."))

    def blocks(self, model, blocks) -> None:
        # A block of one position is full, so each row has its own.
        self.set("train.block_tokens", max(len(block) for block in blocks))


def order_of(seed: int, toy_task) -> list[str]:
    examples = toy_task().train_examples
    return [examples[index].id for index in PromptSampler(len(examples), seed).take(4)]


def test_every_other_key_reaches_what_it_is_for(toy_task, monkeypatch, tmp_path, capsys, no_report):
    defaults = dict(leaves())
    assert set(RUN) == set(defaults)
    assert [key for key in RUN if RUN[key] == defaults[key]] == []
    spy = Spy(monkeypatch, toy_task)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(nested(RUN | {"loss.mixing": 0.5})))
    assert main(["train", str(config), "--output", str(tmp_path / "runs")]) == 0

    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/config.yaml"))
    spy.set("name", run.name)
    spy.set("arm", json.loads((run / "evaluation.json").read_text())["arm"])
    spy.set("train.steps", len((run / "metrics.jsonl").read_text().splitlines()))
    printed = re.findall(r"\b(\d+)/7\b", capsys.readouterr().out)
    assert [int(number) for number in printed] == [3, 6, 7]
    spy.set("train.log_every", 3)
    assert spy.saved == [2, 4, 6, 7]
    spy.set("train.checkpoint_every", 2)
    spy.set("train.updates_per_rollout", spy.updates.count(3))
    spy.set("train.keep_checkpoints", 1 + len(list((run / "checkpoints").iterdir())))
    assert spy.answered[0][::3] == order_of(11, toy_task)[:2]
    spy.set("train.seed", 11)
    assert spy.seen == RUN
