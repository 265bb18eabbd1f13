"""Every key of a run's configuration has an effect.

The keys of ``optimizer`` are those of the update by hand in ``test_update.py``, those of ``model``
are in ``test_model_setup.py``, those of ``parallel`` in ``test_policy.py``, those of
``telemetry`` in ``test_telemetry.py``, ``method`` and those of ``dpo`` in
``test_preference_step.py``, and ``anchor.mtp_loss_weight`` in ``test_mtp.py``.
"""

import inspect
import json
import re

import pytest
import yaml

from wavalign_fast import recipes, rollout
from wavalign_fast.cli import main
from wavalign_fast.config.dpo import DPOConfig
from wavalign_fast.config.gate import GateConfig
from wavalign_fast.config.model import ModelConfig
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.config.rollout import RolloutConfig, VLLMConfig
from wavalign_fast.config.schema import LossConfig, OptimizerConfig, RunConfig
from wavalign_fast.config.telemetry import TelemetryConfig
from wavalign_fast.errors import UserError
from wavalign_fast.losses import HybridObjective, MixingGate
from wavalign_fast.rollout import engine, vllm_in_process
from wavalign_fast.rollout.engine import RolloutRequest
from wavalign_fast.train import arms, collect, engines, objective, policy
from wavalign_fast.train import trainer as training
from wavalign_fast.train.prompt_sampler import PromptSampler
from wavalign_fast.train.ranks import Ranks

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
    return {name: getattr(gate, name) for name in GateConfig.model_fields if name != "scale"}


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


@pytest.mark.parametrize("name", GATE)
def test_every_key_of_the_gate_reaches_the_objective(toy_task, name):
    assert GATE[name] != getattr(GateConfig(), name) and {*GATE, "scale"} == {
        *GateConfig.model_fields
    }
    gate = objective_of(toy_task, {"gate": GateConfig(**{name: GATE[name]})}).gate
    assert gate_settings(gate) == gate_settings(GateConfig()) | {name: GATE[name]}


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
ELSEWHERE = (
    DPOConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TelemetryConfig,
    VLLMConfig,
)


def leaves(group=RunConfig, prefix: str = ""):
    """Keys and defaults, without those of the loss, the model and the optimizer."""
    for name, field in group.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        if name in ("method", "engine", "mtp_loss_weight"):  # other values lead to other code
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


URL = "http://127.0.0.1:9"
VLLM = {
    "url": (URL, lambda it: it.vllm.url),
    "command": (["vllm", "serve"], lambda it: it.vllm.command),
    "options": ({"seed": 3}, lambda it: {"seed": it.vllm.options["seed"]}),
    "weights_dir": ("weights", lambda it: it._new_directory(1).parent.name),
    "update_every": (2, lambda it: steps_with_the_first_weights(it)),
    "max_staleness": (3, lambda it: connected(it).checks.max_staleness),
    "max_logp_diff": (0.5, lambda it: largest_logp_diff(it)),
    "top_p": (0.9, lambda it: asked_of_vllm(it)["top_p"]),
    "top_k": (5, lambda it: asked_of_vllm(it)["top_k"]),
    "repetition_penalty": (1.5, lambda it: asked_of_vllm(it)["repetition_penalty"]),
    "timeout_s": (7.0, lambda it: it.vllm.timeout_s),
    "start_timeout_s": (8.0, lambda it: it.vllm.start_timeout_s),
}
"""For every key of ``rollout.vllm`` another value, and how to read it from the engine."""
TOGETHER = {"update_every": {"max_staleness": 1}}
"""Further keys that a key needs."""


class QuietVLLM:
    """Takes weights, and notes what is asked of it."""

    def __init__(self) -> None:
        self.labels, self.bodies = [], []

    def version(self) -> str:
        return "0.32.0"

    def load(self, directory, label: str) -> None:
        self.labels.append(label)

    def generate(self, requests) -> list:
        self.bodies += requests
        return []

    def close(self) -> None:
        pass


def connected(it):
    it.vllm = QuietVLLM()
    it.set_weights(1)
    return it


def steps_with_the_first_weights(it) -> int:
    quiet = connected(it).vllm
    step = 1
    while len(quiet.labels) == 1:
        step += 1
        it.set_weights(step)
    return step - 1


def asked_of_vllm(it) -> dict:
    request = RolloutRequest(
        prompt_ids=[[2]], places=[0], step=1, seed=0, group_size=1, max_new_tokens=1,
        ends=frozenset(), temperature=1.0,
    )  # fmt: skip
    with pytest.raises(UserError, match="0 answers"):
        connected(it).sample(request)
    return it.vllm.bodies[0]["sampling_params"]


def largest_logp_diff(it) -> float:
    """Tries limits in both directions of that of the configuration."""
    config = RolloutConfig(engine="vllm", vllm=it.config)
    engines.check_logp_diff({"logp_diff/text_mean": 0.49, "logp_diff/speech_mean": 0.5}, config)
    for name in ("text", "speech"):
        with pytest.raises(UserError, match=rf"{name} tokens.*at most 0\.5"):
            engines.check_logp_diff({f"logp_diff/{name}_mean": 0.51}, config)
    return 0.5


@pytest.mark.parametrize("name", VLLMConfig.model_fields)
def test_every_key_of_vllm_reaches_the_engine(name, toy_task, make_config, monkeypatch, tmp_path):
    value, held = VLLM[name]
    assert value != VLLMConfig.model_fields[name].default
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vllm_in_process, "_vllm", lambda: None)  # it is not installed
    keys = TOGETHER.get(name, {}) | ({} if name == "options" else {"url": URL}) | {name: value}
    given = [f"rollout.vllm.{key}={json.dumps(it)}" for key, it in keys.items()]
    config = make_config("rollout.engine=vllm", "loss.importance_cap=2", *given)
    task = toy_task()
    twin = rollout.Twin(task.load_model())
    it = engines.rollout_engine(config, task, twin, Ranks())
    try:
        assert held(it) == value
    finally:
        it.close()


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ([], "float32"),
        (["rollout.dtype=bfloat16"], "bfloat16"),
        (["model.compute_dtype=bfloat16"], "bfloat16"),
        (["model.compute_dtype=bfloat16", "rollout.dtype=float32"], "float32"),
        (["model.dtype=bfloat16"], "bfloat16"),
        (["rollout.vllm.options={dtype: float16}"], "float16"),
    ],
)
def test_vllm_gets_the_dtype_and_the_longest_prompt_with_its_completion(
    toy_task, make_config, monkeypatch, keys, dtype
):
    monkeypatch.setattr(vllm_in_process, "_vllm", lambda: None)
    config = make_config("rollout.engine=vllm", *keys)
    it = engines.rollout_engine(config, toy_task(), None, Ranks())
    assert it.vllm.options == {"max_model_len": 4 + 8, "dtype": dtype}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["rollout.vllm.top_p=0.9"], "top_p given with engine builtin, wanted engine vllm"),
        (["rollout.engine=vllm", "rollout.temperature=0.001"], "temperature 0.001.*at least 0.01"),
        (["rollout.engine=vllm", "rollout.vllm.update_every=3"], "max_staleness of 2 or more"),
        (["rollout.engine=vllm", "rollout.vllm.max_staleness=1"], "wanted loss.importance_cap"),
        (["rollout.engine=vllm", "rollout.vllm.weights_dir=x"], "weights_dir given without a url"),
        (
            ["rollout.engine=vllm", f"rollout.vllm.url={URL}", "rollout.vllm.options={seed: 1}"],
            "options seed given with a url",
        ),
        (["rollout.engine=vllm", "rollout.vllm.command=[vllm]"], "command given without a url"),
        (["rollout.engine=vllm", "rollout.vllm.url=127.0.0.1:8000"], "rollout.vllm.url"),
    ],
)
def test_keys_of_vllm_that_do_not_go_together(make_config, keys, words):
    with pytest.raises(UserError, match=words):
        make_config(*keys)


def test_truncated_sampling_is_warned_of(toy_task, make_config, caplog):
    keys = [f"rollout.vllm.url={URL}", "rollout.vllm.top_p=0.9", "rollout.vllm.top_k=5"]
    config = make_config("rollout.engine=vllm", *keys)
    task = toy_task()
    connected(
        engines.rollout_engine(config, task, rollout.Twin(task.load_model()), Ranks())
    ).close()
    found = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(found) == 2
    assert "rollout.vllm.top_p: 0.9 given" in found[0] and "top_k: 5 given" in found[1]
