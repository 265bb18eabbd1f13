"""One step against the formula in plain torch, computed from the model's logits."""

import pytest
import torch

from wavalign_fast.losses import SPEECH
from wavalign_fast.models import frozen_copy, set_attention
from wavalign_fast.rollout import engine
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step import TrainStep

GROUP, LAMBDA = 4, 0.4


def reward_of(prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """A reward that depends on the prompt too."""
    return float(sum(token % len(prompt) == 0 for token in ids))


def sharp(model, seed: int):
    """Makes the model's distributions far from uniform, so that a temperature matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        noise = torch.randn(model.lm_head.weight.shape, generator=generator)
        model.lm_head.weight.copy_(noise)
    return model


class Recorded:
    """A step of the toy, with a record of its samples and demonstrations."""

    def __init__(self, config, task, monkeypatch, *, reference=None, rewards=reward_of) -> None:
        self.config, self.task, self.reference, self.reward = config, task, reference, rewards
        self.model = sharp(task.load_model(), 1)
        set_attention(self.model, config.model.attention)
        self.sampled, self.shown, self.asked = [], [], []
        sample, demonstrate = engine.sample_with_logps, task.demonstrations

        def record_samples(model, prompts, **settings):
            found = sample(model, prompts, **settings)
            self.sampled += [
                (tuple(prompts[i // settings["group_size"]]), tuple(ids))
                for i, ids in enumerate(found.ids)
            ]
            return found

        def record_demonstrations(examples, rng):
            self.asked = list(examples)
            self.shown = demonstrate(examples, rng)
            return self.shown

        monkeypatch.setattr(engine, "sample_with_logps", record_samples)
        task.demonstrations = record_demonstrations
        task.rewards = lambda done: [rewards(one.example.prompt_ids, one.ids) for one in done]
        self.step = TrainStep(
            config,
            task,
            Policy(self.model),
            None if reference is None else Policy(reference),
            Ranks(),
        )

    def run(self) -> dict[str, float]:
        examples = self.task.train_examples[: self.step.examples_needed]
        return self.take(examples)

    def take(self, examples) -> dict[str, float]:
        clock = Stopwatch()
        return self.step.backward(self.step.prepare(examples, 1, clock), clock).metrics

    def answer_logp(self, model, prompt, answer, temperature: float) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
        return torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)]

    def by_class(self, answer, text: float, speech: float) -> torch.Tensor:
        is_speech = self.task.layout.classify(torch.tensor(answer)) == SPEECH
        return torch.where(is_speech, speech, text)

    def gradients(self) -> dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Runs the step; returns its gradient of each weight and that of the loss by hand.

        The metrics of both must agree.
        """
        metrics = self.run()
        found = {name: weight.grad for name, weight in self.model.named_parameters()}
        self.model.zero_grad()
        wanted = self.loss_by_hand()
        for name, value in wanted.items():
            assert metrics[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-5)
        wanted["loss/total"].backward()
        return {name: (found[name], it.grad) for name, it in self.model.named_parameters()}

    def loss_by_hand(self) -> dict[str, torch.Tensor]:
        """λ·policy + (1 - λ)·anchor under scopes "all", rows one at a time."""
        loss, temperature = self.config.loss, self.config.rollout.temperature
        rewards = torch.tensor([self.reward(*row) for row in self.sampled]).view(-1, GROUP)
        centred = rewards - rewards.mean(1, keepdim=True)
        advantages = centred / (rewards.std(1, correction=0, keepdim=True) + 1e-4)
        policy = []
        for (prompt, ids), advantage in zip(self.sampled, advantages.flatten(), strict=True):
            logp = self.answer_logp(self.model, prompt, ids, temperature)
            terms = -advantage * (logp - logp.detach()).exp()
            if self.reference is not None:
                gap = self.answer_logp(self.reference, prompt, ids, temperature) - logp
                terms = terms + self.by_class(ids, loss.text_kl, loss.speech_kl) * (
                    gap.exp() - gap - 1
                )
            weight = self.by_class(ids, loss.text_weight, loss.speech_weight)
            policy.append((weight * terms).sum() / weight.sum())
        anchor = []
        for pair in self.shown:
            logp = self.answer_logp(self.model, pair.prompt_ids, pair.answer_ids, 1.0)
            weight = self.by_class(
                pair.answer_ids, loss.anchor_text_weight, loss.anchor_speech_weight
            )
            anchor.append(-(weight * logp).sum() / weight.sum())
        terms = {
            "loss/policy": torch.stack(policy).mean(),
            "loss/anchor": torch.stack(anchor).mean(),
        }
        total = LAMBDA * terms["loss/policy"] + (1 - LAMBDA) * terms["loss/anchor"]
        return terms | {"loss/total": total}


SCOPES = ("loss.policy_scope=all", "loss.anchor_scope=all", f"loss.mixing={LAMBDA}")
UNEQUAL = (
    "loss.text_weight=2", "loss.speech_weight=3",
    "loss.anchor_text_weight=5", "loss.anchor_speech_weight=7",
)  # fmt: skip
KL = ("loss.text_kl=0.3", "loss.speech_kl=0.2")


@pytest.mark.parametrize(
    ("overrides", "reward"),
    [
        (UNEQUAL, reward_of),
        (("rollout.temperature=0.6",), reward_of),
        ((*KL, *UNEQUAL, "rollout.temperature=1.7"), reward_of),
        ((*UNEQUAL, "model.attention=varlen", "train.block_tokens=12"), reward_of),
        # Without an advantage the KL alone moves the completions.
        (KL, lambda prompt, ids: 1.0),
    ],
    ids=["weights", "temperature", "kl", "packed", "kl-alone"],
)
def test_a_step_is_the_formula(toy_task, make_config, monkeypatch, overrides, reward):
    task = toy_task()
    reference = sharp(task.load_model(), 2) if KL[0] in overrides else None
    config = make_config(*SCOPES, *overrides)
    recorded = Recorded(config, task, monkeypatch, reference=reference, rewards=reward)
    for found, wanted in recorded.gradients().values():
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(
    ("overrides", "completions", "demonstrations"),
    [
        (["rollout.prompts=3", "anchor.rows=5"], 3, 5),
        (["rollout.prompts=3", "anchor.rows=2"], 3, 2),
        (["rollout.prompts=3", "anchor.rows=0"], 3, 0),
        (["rollout.prompts=3", "anchor.rows=2", "loss.mixing=0"], 0, 2),
        (["rollout.prompts=3", "anchor.rows=5", "loss.mixing=1"], 3, 0),
    ],
)
def test_rollouts_and_demonstrations_share_the_first_examples(
    toy_task, make_config, monkeypatch, overrides, completions, demonstrations
):
    task = toy_task()
    recorded = Recorded(make_config(*overrides), task, monkeypatch)
    assert recorded.step.examples_needed == max(completions, demonstrations)
    # With more examples than it needs, it must take the first ones only.
    recorded.take(task.train_examples)
    prompts = [example.prompt_ids for example in task.train_examples[:completions]]
    assert [prompt for prompt, _ in recorded.sampled[::GROUP]] == prompts
    assert recorded.asked == task.train_examples[:demonstrations]


def test_only_what_is_trained_is_in_training_mode(toy_task, make_config, monkeypatch):
    """Dropout acts in the forward pass that has a gradient, and in no other."""
    task = toy_task()
    reference = frozen_copy(task.load_model().train())
    recorded = Recorded(make_config("loss.text_kl=0.1"), task, monkeypatch, reference=reference)
    seen = set()

    def note(who):
        return lambda module, args: seen.add((who, torch.is_grad_enabled(), module.training))

    recorded.model.base_model.register_forward_pre_hook(note("model"))
    reference.base_model.register_forward_pre_hook(note("reference"))
    recorded.run()
    assert seen == {
        ("model", False, False), ("model", True, True), ("reference", False, False)
    }  # fmt: skip
