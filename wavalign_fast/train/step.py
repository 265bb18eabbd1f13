"""Computes one optimizer step, up to and including the backward pass, on all ranks together."""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Completion, Example
from wavalign_fast.errors import UserError
from wavalign_fast.losses import (
    HybridOutput,
    MetricTotals,
    MixingGate,
    Normalisers,
    group_advantages,
    mismatch_totals,
    truncated_importance,
)
from wavalign_fast.losses.metric_names import with_released_names
from wavalign_fast.models.attention import TAKES_BORDERS
from wavalign_fast.ops.transfer import copied_to, copied_together
from wavalign_fast.train.collect import Collected, Collector, sampling_twin
from wavalign_fast.train.deal import deal, rounds
from wavalign_fast.train.engines import check_logp_diff
from wavalign_fast.train.flops import StepTokens
from wavalign_fast.train.micro_batch import MicroBatch, score_rollouts
from wavalign_fast.train.nonfinite_rows import NonFiniteRows
from wavalign_fast.train.objective import build_objective, find_loss_ids
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import GradientAccumulation, Head, Policy, WithoutLora
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step_metrics import (
    as_floats,
    completion_metrics,
    mismatch_metrics,
    named_metrics,
    over_ranks,
)
from wavalign_fast.train.step_work import step_work
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.token_blocks import (
    Row,
    TokenBlock,
    count_tables,
    lay_out,
    step_rows,
)


@dataclass(frozen=True)
class StepResult:
    """What an update computed besides the gradients; the same on all ranks."""

    metrics: dict[str, float]
    broken: NonFiniteRows = field(repr=False)
    empty: bool = False
    """Whether nothing was learnt from, so that the weights must not move."""


@dataclass(frozen=True)
class _Mixture:
    """What every micro-batch of a step needs from the rewards of the whole step."""

    rewards: Tensor
    """float32 [B, G]."""
    rl_weight: Tensor
    """λ, 0-d."""
    metrics: dict[str, Tensor]
    """Those of rewards and gate, the same in every update."""


@dataclass
class StepBatch:
    """The rows of a step, which one or several updates are computed from."""

    collected: Collected
    normalisers: Normalisers
    micro_batches: list[MicroBatch]
    """Those of this rank, with idle ones up to the number of the busiest rank."""
    with_rollouts: int
    """How many of them have completions on some rank."""
    tokens: int
    """Ids of the prompts and answers."""
    work: StepTokens
    """The tokens by what is computed of them, over all ranks and updates."""
    anchored: bool
    updates: int = 0
    """How many were computed."""
    mixture: _Mixture | None = None
    """What the gradients need of the rewards, once those are there."""

    @property
    def completions(self) -> Sequence[Completion]:
        """Those of all ranks."""
        return self.collected.completions


class TrainStep:
    """Rollouts → reference log-probs → rewards → hybrid loss → gradients.

    A task that can start its rewards works on them while the rollouts are scored.

    Skips rollouts, demonstrations or the reference if no term of the loss needs them. All ranks
    have all rows of the step, so λ, advantages and denominators have the same bits on each. Each
    rank computes the share of the loss of the rows that are dealt to it.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        policy: Policy,
        reference: Policy | WithoutLora | None,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.task = task
        self.policy = policy
        self.reference = reference
        self.ranks = ranks
        streams = policy.streams
        self.objective = build_objective(
            config.loss, task.layout, kl=reference is not None, streams=streams
        )
        self.loss_ids = find_loss_ids(self.objective, None if streams is None else streams.forced)
        self.twin = sampling_twin(policy, config)
        self.collect = Collector(config, task, self.twin, ranks)
        self.packed = config.model.attention in TAKES_BORDERS
        self.accumulation = GradientAccumulation(policy, config.parallel, ranks)

    @property
    def data(self) -> Sequence[Example]:
        """What ``examples_needed`` of are taken for a step."""
        return self.task.train_examples

    def state_dict(self) -> dict[str, Any]:
        """Returns what a step changes besides the weights: the gate."""
        return {"objective": copy.deepcopy(self.objective.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.objective.load_state_dict(state["objective"])

    @property
    def examples_needed(self) -> int:
        """Number of training examples per step; rollouts and anchor share the first ones."""
        prompts = self.config.rollout.prompts if self.config.needs_rollouts else 0
        return max(prompts, self.config.anchor.rows if self.config.needs_anchor else 0)

    def prepare(self, examples: Sequence[Example], step: int, clock: Stopwatch) -> StepBatch:
        """Samples and lays out the rows of step number ``step``.

        Args:
            examples: the training examples of the step, the same on all ranks.
        """
        collected = Collected.nothing(self.config.rollout.group_size)
        if self.config.needs_rollouts:
            collected = self.collect(examples[: self.config.rollout.prompts], step, clock)
        rewards = collected.unknown
        if self._skips_rows:
            rewards = collected.rewards(clock)
        completions = collected.completions
        with self.ranks.failing_together():
            rows, tokens = self._rows(completions, rewards, examples, step)
        with clock("forward_backward"):
            dealt = deal(
                rows,
                world=self.ranks.world,
                block_tokens=self.config.train.block_tokens,
                packed=self.packed,
            )
            count, with_rollouts = rounds(dealt)
            turns = [
                [part[turn] if turn < len(part) else [] for part in dealt]
                for turn in range(max(count, 1))
            ]
            micro_batches = [self._micro_batch(parts, collected) for parts in turns]
            normalisers = self.objective.normalisers(count_tables(rows).batch(collected.unknown))
        return StepBatch(
            collected=collected,
            normalisers=normalisers,
            micro_batches=micro_batches,
            with_rollouts=with_rollouts,
            tokens=tokens,
            work=step_work(
                rows,
                completions,
                loss_ids=self.loss_ids,
                group_size=self.config.rollout.group_size,
                updates=self.config.train.updates_per_rollout,
                scored=(self.reference is not None) + (self.config.loss.importance_cap is not None),
                ids_a_position=1 if self.policy.streams is None else 2,
            ),
            anchored=any(not row.is_rollout for row in rows),
        )

    def backward(self, batch: StepBatch, clock: Stopwatch) -> StepResult:
        """Adds the gradients of one update to the model.

        The second and later ones of a batch are off-policy: their ratios are those to the policy
        before the first one.
        """
        examples = [done.example.id for done in batch.completions]
        broken = NonFiniteRows(lambda row: f"rollout {row} (prompt {examples[row]})")
        self.policy.train()
        if batch.mixture is None:
            for turn, micro in enumerate(batch.micro_batches):
                self._score(micro, run=turn < batch.with_rollouts, clock=clock)
            batch.mixture = self._mixture(batch.collected, clock)
        parts = self._backward(batch, batch.mixture, broken, clock)
        with clock("exchange"):
            totals = over_ranks(parts, self.ranks)
        batch.updates += 1
        rewards = batch.mixture.rewards
        metrics = named_metrics(
            totals.means() | batch.mixture.metrics,
            rollouts=rewards.numel() > 0,
            rewarded=not bool(rewards.isnan().all()),
            anchored=batch.anchored,
        )
        metrics |= mismatch_metrics(totals) | completion_metrics(batch.completions)
        found = as_floats(metrics) | batch.collected.metrics
        check_logp_diff(found, self.config.rollout)
        return StepResult(found, broken)

    def _rows(
        self, completions: list[Completion], rewards: Tensor, examples: Sequence[Example], step: int
    ) -> tuple[list[Row], int]:
        """Returns the rows of the step, and the number of tokens of prompts and answers."""
        count = self.config.anchor.rows if self.config.needs_anchor else 0
        # Every rank draws all demonstrations, with the same numbers.
        rng = random.Random(f"demonstrations:{self.config.train.seed}:{step}")
        shown = self.task.demonstrations(examples[:count], rng) if count else []
        rows = step_rows(
            completions,
            shown,
            loss_ids=self.loss_ids,
            skipped=self._without_gradient(rewards),
            vectors=self.policy.vectors,
        )
        trained = [(done.example.prompt_ids, done.ids) for done in completions]
        trained += [(pair.prompt_ids, pair.answer_ids) for pair in shown]
        return rows, sum(len(prompt) + len(answer) for prompt, answer in trained)

    @property
    def _skips_rows(self) -> bool:
        """Whether the rewards decide which completions are computed."""
        return self.reference is None and self.config.loss.normalisation != "token"

    def _without_gradient(self, rewards: Tensor) -> frozenset[int]:
        """Returns the completions without an advantage or a KL, which cannot change the loss.

        All completions of their group have the same reward. They still count in every mean of the
        loss and of the rewards; only the model's forward and backward pass over them is skipped. A
        mean over tokens needs their tokens, so nothing is skipped then.
        """
        if not self._skips_rows or rewards.numel() == 0:
            return frozenset()
        advantages = group_advantages(
            rewards, std=self.config.loss.advantage_std, options=self.objective.options
        )
        return frozenset((advantages.flatten() == 0).nonzero().flatten().tolist())

    def _mixture(self, collected: Collected, clock: Stopwatch) -> _Mixture:
        """Waits for the rewards, and returns λ and the metrics of rewards and gate."""
        rewards = collected.rewards(clock)
        gate = self.objective.gate
        gate_metrics: dict[str, Tensor] = {}
        if isinstance(gate, MixingGate):
            rl_weight, gate_metrics = gate.step(rewards, self.objective.options, reduce=False)
        else:
            rl_weight = torch.tensor(float(gate))
        metrics = self.objective.reward_metrics(rewards) | gate_metrics
        return _Mixture(rewards, rl_weight, metrics | with_released_names({"rl_weight": rl_weight}))

    def _backward(
        self, batch: StepBatch, mixture: _Mixture, broken: NonFiniteRows, clock: Stopwatch
    ) -> list[MetricTotals]:
        """Runs forward and backward over this rank's micro-batches; returns the metrics of each."""
        first = batch.updates == 0
        again = batch.updates + 1 < self.config.train.updates_per_rollout
        totals = []
        for turn, micro in enumerate(batch.micro_batches):
            with clock("forward_backward"):
                self.accumulation.before(last=turn + 1 == len(batch.micro_batches))
                out = self._forward(micro, mixture, batch.normalisers, broken)
                out.loss.backward()
            totals.append(out.totals)
            if first and self.config.needs_rollouts:
                totals.append(self._mismatch(micro, out.logp, mixture.rewards))
            if first and again:
                micro.old_logp = out.logp
        self.accumulation.after()
        return totals

    def _score(self, micro: MicroBatch, *, run: bool, clock: Stopwatch) -> None:
        """Computes the log-probs that are constants of the updates, of one micro-batch.

        Args:
            run: whether some rank has completions in its micro-batch. The others run the model
                along with it, because FSDP2 gathers the weights on all ranks.
        """
        temperature, options = self.config.rollout.temperature, self.objective.options
        nothing = torch.zeros(micro.block.tables.targets.shape)
        if self.reference is not None:
            with clock("reference"):
                micro.ref_logp = nothing
                if run:
                    micro.ref_logp = score_rollouts(
                        self.reference, micro, temperature=temperature, options=options
                    )
        if (cap := self.config.loss.importance_cap) is not None and self.config.needs_rollouts:
            with clock("score"):
                logp = nothing
                if run:
                    logp = score_rollouts(
                        self.policy, micro, temperature=temperature, options=options
                    )
                sampler_logp = copied_to(micro.sampler_logp, logp.device)
                micro.importance = truncated_importance(logp, sampler_logp, cap)

    def _mismatch(self, micro: MicroBatch, logp: Tensor, rewards: Tensor) -> MetricTotals:
        """Compares the trainer's log-probs of sampled tokens that carry loss with the sampler's."""
        batch = micro.batch(rewards)
        sampled = self.objective.token_weights(batch).live & (batch.policy_row >= 0)
        where, sampler_logp, targets = copied_together(
            logp.device, sampled, micro.sampler_logp, batch.targets
        )
        return mismatch_totals(
            logp,
            sampler_logp,
            targets,
            where,
            layout=self.task.layout,
            cap=self.config.loss.importance_cap,
        )

    def _forward(
        self,
        micro: MicroBatch,
        mixture: _Mixture,
        normalisers: Normalisers,
        broken: NonFiniteRows,
    ) -> HybridOutput:
        batch = micro.batch(mixture.rewards)

        def score(hidden: Tensor, weight: Head, bias: Tensor | None) -> HybridOutput:
            broken.watch(hidden, micro.block.tables)
            return self.objective(
                self._at_sampling_temperature(hidden, micro.block, bias),
                weight,
                batch,
                bias=bias,
                rl_weight=mixture.rl_weight,
                normalisers=normalisers,
                transform=self.policy.transform,
            )

        return self.policy([micro.block.ids], score, micro.live)

    def _micro_batch(self, parts: Sequence[list[Row]], collected: Collected) -> MicroBatch:
        """Returns this rank's micro-batch of a turn, whose rows on every rank are ``parts``."""
        live = 0
        if self.policy.head_is_sharded:
            batches = [count_tables(rows).batch(collected.unknown) for rows in parts]
            live = max(int(self.objective.token_weights(batch).live.sum()) for batch in batches)
        sampled = max(sum(len(row.answer) for row in rows if row.is_rollout) for rows in parts)
        rows = parts[self.ranks.rank]
        block = lay_out(rows, self.task.pad_id, packed=self.packed)
        return MicroBatch.of(block, rows, collected.completions, live=live, sampled=sampled)

    def _at_sampling_temperature(
        self, hidden: Tensor, block: TokenBlock, bias: Tensor | None
    ) -> Tensor:
        """Divides the rollouts' hidden states by the temperature that they were sampled at."""
        temperature = self.config.rollout.temperature
        if temperature == 1.0 or not block.is_rollout:
            return hidden
        capped = self.policy.transform.softcap is not None
        if bias is not None or capped:
            what = "soft-capped logits" if capped else "a head with a bias"
            raise UserError(f"rollout.temperature: {temperature} given, wanted 1 for {what}")
        return hidden / temperature
