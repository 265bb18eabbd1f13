"""Computes one optimizer step, up to and including the backward pass."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavalign_fast.config.schema import LossConfig, RunConfig
from wavalign_fast.data.records import Completion, Example
from wavalign_fast.errors import UserError
from wavalign_fast.losses import (
    SPEECH,
    HybridBatch,
    HybridObjective,
    MixingGate,
    ModalityLayout,
    group_advantages,
)
from wavalign_fast.models import hidden_states, output_head
from wavalign_fast.ops import IGNORE_INDEX, LossOptions, linear_logprob
from wavalign_fast.rollout import end_ids, sample_completions
from wavalign_fast.train.rewards import Rewarder
from wavalign_fast.train.step_metrics import completion_metrics, named_metrics
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.token_blocks import LossIds, TokenBlocks, build_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN_KEYS = {"mixing", "gate", "backend"}
"""Keys of ``loss`` that are not parameters of ``HybridObjective`` under the same name."""


def build_objective(config: LossConfig, layout: ModalityLayout, *, kl: bool) -> HybridObjective:
    """Builds the hybrid loss of a config; without ``kl`` it needs no reference log-probs."""
    settings = {
        name: getattr(config, name) for name in LossConfig.model_fields if name not in OWN_KEYS
    }
    if not kl:
        settings |= {"text_kl": 0.0, "speech_kl": 0.0}
    adaptive = config.mixing == "adaptive"
    return HybridObjective(
        layout,
        gate=MixingGate(**config.gate.model_dump()) if adaptive else float(config.mixing),
        options=LossOptions(backend=config.backend),
        **settings,
    )


def find_loss_ids(objective: HybridObjective) -> LossIds:
    """Finds the ids whose class has a weight in some term of the loss."""
    speech = objective.layout.classify(torch.arange(objective.layout.vocab_size)) == SPEECH
    policy, anchor, kl = (
        torch.tensor(weights.speech > 0).where(speech, torch.tensor(weights.text > 0))
        for weights in (objective.policy_weights, objective.anchor_weights, objective.kl_weights)
    )
    if objective.kl_scope == "completion" and bool(kl.any()):
        # This KL is a mean over all completion tokens, also those outside the policy's scope.
        policy = torch.ones_like(policy)
    return LossIds(policy, anchor)


class Stopwatch:
    """Measures the seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent

    def metrics(self) -> dict[str, float]:
        """Returns ``perf/<phase>_s`` for every phase that ran."""
        return {f"perf/{phase}_s": spent for phase, spent in self.seconds.items()}


class TrainStep:
    """Rollouts → rewards → reference log-probs → hybrid loss → gradients.

    Skips rollouts, demonstrations or the reference if no term of the loss needs them.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        model: "PreTrainedModel",
        reference: "PreTrainedModel | None",
        generator: torch.Generator,
        rng: random.Random,
    ) -> None:
        self.config = config
        self.task = task
        self.model = model
        self.reference = reference
        self.objective = build_objective(config.loss, task.layout, kl=reference is not None)
        self.loss_ids = find_loss_ids(self.objective)
        self.generator = generator
        self.rng = rng
        self.rewarder = Rewarder(task)
        self.ends = end_ids(task.eos_id)

    @property
    def examples_needed(self) -> int:
        """Number of training examples per step; rollouts and anchor share the first ones."""
        prompts = self.config.rollout.prompts if self.config.needs_rollouts else 0
        return max(prompts, self.config.anchor.rows if self.config.needs_anchor else 0)

    def __call__(self, examples: Sequence[Example], clock: Stopwatch) -> dict[str, Tensor]:
        """Adds the step's gradients to the model and returns its metrics as 0-d tensors."""
        completions: list[Completion] = []
        rewards = torch.empty(0, self.config.rollout.group_size)
        if self.config.needs_rollouts:
            with clock("rollout"):
                completions = self._rollouts(examples[: self.config.rollout.prompts])
            with clock("reward"):
                rewards = self.rewarder(completions).view(-1, self.config.rollout.group_size)
        rows = self.config.anchor.rows if self.config.needs_anchor else 0
        shown = self.task.demonstrations(examples[:rows], self.rng) if rows else []
        tokens = build_blocks(
            completions,
            shown,
            pad_id=self.task.pad_id,
            loss_ids=self.loss_ids,
            block_tokens=self.config.train.block_tokens,
            skipped=self._without_gradient(rewards),
        )
        reference_logp = None
        if self.reference is not None:
            with clock("reference"):
                reference_logp = self._reference_logp(self.reference, tokens)
        with clock("forward_backward"):
            metrics = self._backward(tokens, rewards, reference_logp)
        trained = [(done.example.prompt_ids, done.ids) for done in completions]
        trained += [(pair.prompt_ids, pair.answer_ids) for pair in shown]
        metrics["tokens"] = torch.tensor(float(sum(len(p) + len(a) for p, a in trained)))
        return metrics | completion_metrics(completions)

    def _rollouts(self, examples: Sequence[Example]) -> list[Completion]:
        rollout = self.config.rollout
        sampled = sample_completions(
            self.model,
            [example.prompt_ids for example in examples],
            group_size=rollout.group_size,
            max_new_tokens=rollout.max_new_tokens,
            eos_id=self.task.eos_id,
            pad_id=self.task.pad_id,
            temperature=rollout.temperature,
            generator=self.generator,
        )
        return [
            Completion(
                example=examples[row // rollout.group_size],
                ids=tuple(ids),
                ended=bool(ids) and ids[-1] in self.ends,
            )
            for row, ids in enumerate(sampled)
        ]

    def _without_gradient(self, rewards: Tensor) -> frozenset[int]:
        """Returns the completions without an advantage or a KL, which cannot change the loss.

        All completions of their group have the same reward. They still count in every mean of the
        loss and of the rewards; only the model's forward and backward pass over them is skipped. A
        mean over tokens needs their tokens, so nothing is skipped then.
        """
        by_token = self.config.loss.normalisation == "token"
        if self.reference is not None or rewards.numel() == 0 or by_token:
            return frozenset()
        advantages = group_advantages(
            rewards, std=self.config.loss.advantage_std, options=self.objective.options
        )
        return frozenset((advantages.flatten() == 0).nonzero().flatten().tolist())

    @torch.no_grad()
    def _reference_logp(self, reference: "PreTrainedModel", tokens: TokenBlocks) -> Tensor:
        """Returns the log-probs [T] of sampled tokens under the frozen base; 0 elsewhere."""
        logp = torch.zeros(tokens.targets.shape)
        positions = tokens.rollout_positions
        sampled = tokens.policy_row[:positions] >= 0
        weight, bias = output_head(reference)
        sampled_logp = linear_logprob(
            hidden_states(reference, tokens.blocks[: tokens.rollout_blocks]),
            weight,
            tokens.targets[:positions].where(sampled, IGNORE_INDEX),
            bias=bias,
            temperature=self.config.rollout.temperature,
            ignore_index=IGNORE_INDEX,
            options=self.objective.options,
        )
        logp[:positions] = sampled_logp.logp
        return logp

    def _backward(
        self, tokens: TokenBlocks, rewards: Tensor, reference_logp: Tensor | None
    ) -> dict[str, Tensor]:
        self.model.train()
        hidden = hidden_states(self.model, tokens.blocks)
        weight, bias = output_head(self.model)
        batch = HybridBatch(
            tokens.targets, tokens.policy_row, tokens.anchor_row, rewards, ref_logp=reference_logp
        )
        hidden = self._at_sampling_temperature(hidden, tokens.rollout_positions, bias)
        out = self.objective(hidden, weight, batch, bias=bias)
        out.loss.backward()
        return named_metrics(
            out.metrics,
            rollouts=rewards.numel() > 0,
            rewarded=not bool(rewards.isnan().all()),
            anchored=len(tokens.blocks) > tokens.rollout_blocks,
        )

    def _at_sampling_temperature(
        self, hidden: Tensor, rollout_positions: int, bias: Tensor | None
    ) -> Tensor:
        """Divides the rollouts' hidden states by the temperature that they were sampled at."""
        temperature = self.config.rollout.temperature
        if temperature == 1.0 or rollout_positions == 0:
            return hidden
        if bias is not None:
            raise UserError(
                f"rollout.temperature: {temperature} given, wanted 1 for a head with a bias"
            )
        return torch.cat([hidden[:rollout_positions] / temperature, hidden[rollout_positions:]])
