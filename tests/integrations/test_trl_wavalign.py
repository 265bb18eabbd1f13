"""WavAlign on TRL's trainer: the gradient of `HybridObjective` on the same rollouts."""

import json
import os

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("trl")

import wavalign_fast as wf
from tests.integrations.tiny import EOS, VOCAB, tiny_model
from tests.integrations.trl_runs import ANSWERS, GROUP, PROMPTS, Scripted, run
from tests.ranks import run_ranks
from wavalign_fast.errors import UserError
from wavalign_fast.integrations import attach_head
from wavalign_fast.integrations.trl_wavalign import GATE_FILE, WavAlignGRPOTrainer

LAYOUT = wf.ModalityLayout(vocab_size=VOCAB, speech=((50, VOCAB),), eos=(EOS,), eos_as="speech")
# The third is of speech alone, the last are ids.
SHOWN = [*ANSWERS[:2], "w60 w61", *ANSWERS[3:16]]
COLUMNS = {"prompt": PROMPTS, "demonstration": SHOWN}
OPTIONS = dict(loss_type="grpo", max_grad_norm=0, max_steps=1)


def reward(completion_ids, **_):
    return [1 + 4 * (sum(ids) % 7 / 6) for ids in completion_ids]


class Kept(Scripted):
    """Keeps the rollouts before TRL shuffles them, and their rewards."""

    def _generate_and_score_completions(self, inputs):
        self.batch = super()._generate_and_score_completions(inputs)
        return self.batch

    def _calculate_rewards(self, inputs, *args, **kwargs):
        rewards = super()._calculate_rewards(inputs, *args, **kwargs)
        own = rewards[:, 0].chunk(self.accelerator.num_processes)[self.accelerator.process_index]
        self.own_rewards = own.view(-1, GROUP).cpu()
        return rewards


def train(*, accumulate, seed=0, scopes=None, columns=COLUMNS, **options):
    options = OPTIONS | {
        "gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 8 // accumulate,
        "seed": seed, "script": Kept,
    } | options  # fmt: skip
    more = {"layout": LAYOUT, "reward_funcs": reward, "columns": columns, **(scopes or {})}
    return run("GRPO", WavAlignGRPOTrainer, more=more, **options)


def joined(*parts):
    """Rows [R, L_i] with their pad values, right-padded to one length."""
    width = max(rows.shape[1] for rows, _ in parts)
    pad = torch.nn.functional.pad
    return torch.cat([pad(rows, (0, width - rows.shape[1]), value=value) for rows, value in parts])


def objective_of(trainer, scopes):
    """(λ, loss, gradient) of the objective over what the trainer has seen, on all ranks."""
    made = trainer.batch
    rollouts = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
    seen = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
    ids, labels, mask = (torch.cat(parts) for parts in zip(*trainer._shown, strict=True))
    input_ids = joined((rollouts, 0), (ids, 0))
    width = made["prompt_ids"].shape[1]
    batch = wf.HybridBatch.from_padded(
        input_ids, made["completion_mask"],
        joined((torch.full_like(rollouts, -100), -100), (labels, -100)),
        trainer.own_rewards, torch.full((len(trainer.own_rewards),), width),
    )  # fmt: skip
    objective = wf.HybridObjective(LAYOUT, advantage_std="sample", **scopes)
    own = objective.normalisers(batch)
    totals = torch.stack([own.policy, own.anchor, own.kl])
    if dist.is_initialized():
        dist.all_reduce(totals)
    model = tiny_model()
    attach_head(model)

    def result(hidden, head):
        return objective(hidden, head.weight, batch, normalisers=wf.Normalisers(*totals))

    found = model(input_ids=input_ids, attention_mask=joined((seen, 0), (mask, 0)), on_head=result)
    found.loss.backward()
    gradient = torch.cat([w.grad.double().flatten() for w in model.parameters()])
    if dist.is_initialized():
        dist.all_reduce(gradient)
    return float(found.rl_weight), float(found.loss.detach()), gradient


def differences(accumulate, **scopes):
    """Of λ, of the loss and of the gradient, relative; each of a rank's own."""
    trained = train(accumulate=accumulate, scopes=scopes, seed=3)
    rl_weight, loss, gradient = objective_of(trained.trainer, scopes)
    ranks = trained.trainer.accelerator.num_processes
    own_loss = float(trained.losses.sum()) / ranks
    apart = (trained.gradients[0] - gradient).norm() / gradient.norm()
    return [
        abs(float(trained.trainer._rl_weight) - rl_weight), abs(own_loss - loss), float(apart),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("accumulate", "scopes"),
    [
        (1, {}),
        (2, {"policy_scope": "all", "anchor_scope": "text"}),
    ],
)
def test_the_gradient_is_that_of_the_objective(accumulate, scopes):
    assert max(differences(accumulate, **scopes)) < 2e-6


def as_a_rank(accumulate, scopes):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # this process was forked
    rank = str(dist.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # fmt: skip
    found = differences(accumulate, **scopes)
    with pytest.raises(UserError, match="rollouts of a rank: got 2, want a multiple of"):
        train(accumulate=2, per_device_train_batch_size=1)
    return torch.tensor(found)


def test_two_ranks_have_one_objective():
    for found in run_ranks(2, as_a_rank, 2, {"anchor_scope": "text"}):
        assert found.max() < 2e-6, found


def test_lambda_is_logged_and_survives_a_checkpoint(tmp_path):
    trained = train(accumulate=1, max_steps=2, save_strategy="steps", save_steps=2,
                    output_dir=str(tmp_path))  # fmt: skip
    gate = trained.trainer.gate
    assert trained.logs[-1]["lambda"] == pytest.approx(float(gate.value))
    folder = tmp_path / "checkpoint-2"
    assert json.loads((folder / GATE_FILE).read_text())["value"] == float(gate.value)
    gate.value = None
    trained.trainer._load_optimizer_and_scheduler(str(folder))
    assert float(gate.value) == pytest.approx(trained.logs[-1]["lambda"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scopes": {"policy_scope": "sound"}}, "policy_scope: got 'sound'"),
        ({"scopes": {"gate": 1.5}}, "gate: got 1.5"),
        ({"scopes": {"layout": wf.ModalityLayout(vocab_size=90, speech=())}}, "got 90 ids, want"),
        ({"columns": COLUMNS | {"demonstration": [1.5] * 16}}, "demonstration: got 1.5, want"),
        ({"columns": {"prompt": PROMPTS}}, r"got columns \['prompt'\], want demonstration"),
        ({"accumulate": 2, "steps_per_generation": 1}, "got 1, want a multiple of grad"),
    ],
)
def test_mistakes_are_named(change, named):
    with pytest.raises((UserError, ValueError), match=named):
        train(**{"accumulate": 1} | change)
