"""Computes one optimizer step, up to and including the backward pass, on all ranks together."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Completion, Example
from wavalign_fast.errors import UserError
from wavalign_fast.losses import (
    HybridBatch,
    HybridOutput,
    MixingGate,
    Normalisers,
    group_advantages,
)
from wavalign_fast.losses.metric_names import with_released_names
from wavalign_fast.losses.totals import MetricTotals
from wavalign_fast.models.attention import TAKES_BORDERS
from wavalign_fast.ops import IGNORE_INDEX, HeadShard, linear_logprob
from wavalign_fast.rollout.twin import Twin
from wavalign_fast.train.collect import Collector
from wavalign_fast.train.deal import deal, rounds
from wavalign_fast.train.flops import StepTokens
from wavalign_fast.train.nonfinite_rows import NonFiniteRows
from wavalign_fast.train.objective import build_objective, find_loss_ids
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import GradientAccumulation, Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step_metrics import completion_metrics, named_metrics
from wavalign_fast.train.step_work import step_work
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.token_blocks import (
    Row,
    RowTables,
    TokenBlock,
    count_tables,
    lay_out,
    step_rows,
)


@dataclass(frozen=True)
class StepResult:
    """What a step computed besides the gradients; the same on all ranks."""

    metrics: dict[str, float]
    tokens: int
    """Ids of the prompts and answers."""
    work: StepTokens
    """The tokens by what was computed of them, over all ranks."""
    completions: Sequence[Completion]
    broken: NonFiniteRows = field(repr=False)


@dataclass(frozen=True)
class _Mixture:
    """What every micro-batch of a step needs from the whole step."""

    rewards: Tensor
    """float32 [B, G]."""
    rl_weight: Tensor
    """λ, 0-d."""
    normalisers: Normalisers


class TrainStep:
    """Rollouts → rewards → reference log-probs → hybrid loss → gradients.

    Skips rollouts, demonstrations or the reference if no term of the loss needs them. All ranks
    have all rows of the step, so λ, advantages and denominators have the same bits on each. Each
    rank computes the share of the loss of the rows that are dealt to it.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        policy: Policy,
        reference: Policy | None,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.task = task
        self.policy = policy
        self.reference = reference
        self.ranks = ranks
        self.objective = build_objective(config.loss, task.layout, kl=reference is not None)
        self.loss_ids = find_loss_ids(self.objective)
        self.twin = Twin(policy.model, root=policy)
        self.collect = Collector(config, task, self.twin, ranks)
        self.packed = config.model.attention in TAKES_BORDERS
        self.accumulation = GradientAccumulation(policy, config.parallel, ranks)

    @property
    def examples_needed(self) -> int:
        """Number of training examples per step; rollouts and anchor share the first ones."""
        prompts = self.config.rollout.prompts if self.config.needs_rollouts else 0
        return max(prompts, self.config.anchor.rows if self.config.needs_anchor else 0)

    def __call__(self, examples: Sequence[Example], step: int, clock: Stopwatch) -> StepResult:
        """Adds the gradients of step number ``step`` to the model.

        Args:
            examples: the training examples of the step, the same on all ranks.
        """
        completions: list[Completion] = []
        rewards = torch.empty(0, self.config.rollout.group_size)
        if self.config.needs_rollouts:
            prompts = examples[: self.config.rollout.prompts]
            completions, rewards = self.collect(prompts, step, clock)
        with self.ranks.failing_together():
            rows, tokens = self._rows(completions, rewards, examples, step)
        broken = NonFiniteRows()
        with clock("forward_backward"):
            mixture, gate_metrics = self._mixture(rows, rewards)
        totals = self._backward(rows, mixture, broken, clock)
        with clock("exchange"):
            totals = totals.with_vector(self.ranks.sum(totals.as_vector().cpu()))
        found = totals.means() | self.objective.reward_metrics(rewards) | gate_metrics
        metrics = named_metrics(
            with_released_names(found | {"rl_weight": mixture.rl_weight}),
            rollouts=rewards.numel() > 0,
            rewarded=not bool(rewards.isnan().all()),
            anchored=any(not row.is_rollout for row in rows),
        ) | completion_metrics(completions)
        values = torch.stack([value.double().cpu() for value in metrics.values()]).tolist()
        return StepResult(
            dict(zip(metrics, values, strict=True)),
            tokens,
            step_work(
                rows,
                completions,
                loss_ids=self.loss_ids,
                group_size=self.config.rollout.group_size,
                scored=self.reference is not None,
            ),
            completions,
            broken,
        )

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
        )
        trained = [(done.example.prompt_ids, done.ids) for done in completions]
        trained += [(pair.prompt_ids, pair.answer_ids) for pair in shown]
        return rows, sum(len(prompt) + len(answer) for prompt, answer in trained)

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

    def _mixture(self, rows: Sequence[Row], rewards: Tensor) -> tuple[_Mixture, dict[str, Tensor]]:
        """Returns λ and the denominators of the whole step, and the metrics of the gate."""
        gate = self.objective.gate
        gate_metrics: dict[str, Tensor] = {}
        if isinstance(gate, MixingGate):
            rl_weight, gate_metrics = gate.step(rewards, self.objective.options, reduce=False)
        else:
            rl_weight = torch.tensor(float(gate))
        normalisers = self.objective.normalisers(_batch(count_tables(rows), rewards))
        return _Mixture(rewards, rl_weight, normalisers), gate_metrics

    def _backward(
        self, rows: Sequence[Row], mixture: _Mixture, broken: NonFiniteRows, clock: Stopwatch
    ) -> MetricTotals:
        """Runs forward and backward over this rank's micro-batches; returns sums of metrics."""
        dealt = deal(
            rows,
            world=self.ranks.world,
            block_tokens=self.config.train.block_tokens,
            packed=self.packed,
        )
        count, with_rollouts = rounds(dealt)
        self.policy.train()
        totals = []
        for turn in range(max(count, 1)):
            parts = [part[turn] if turn < len(part) else [] for part in dealt]
            block = lay_out(parts[self.ranks.rank], self.task.pad_id, packed=self.packed)
            reference_logp = None
            if self.reference is not None:
                with clock("reference"):
                    reference_logp = self._reference_logp(
                        block, height=_most_sampled(parts), run=turn < with_rollouts
                    )
            with clock("forward_backward"):
                self.accumulation.before(last=turn + 1 >= count)
                height = self._most_live(parts, mixture.rewards)
                out = self._forward(block, height, mixture, reference_logp, broken)
                out.loss.backward()
            totals.append(out.totals)
        self.accumulation.after()
        return sum(totals[1:], totals[0])

    def _forward(
        self,
        block: TokenBlock,
        height: int,
        mixture: _Mixture,
        reference_logp: Tensor | None,
        broken: NonFiniteRows,
    ) -> HybridOutput:
        batch = _batch(block.tables, mixture.rewards, reference_logp)

        def score(hidden: Tensor, weight: Tensor | HeadShard, bias: Tensor | None) -> HybridOutput:
            broken.watch(hidden, block.tables)
            return self.objective(
                self._at_sampling_temperature(hidden, block, bias),
                weight,
                batch,
                bias=bias,
                rl_weight=mixture.rl_weight,
                normalisers=mixture.normalisers,
            )

        return self.policy([block.ids], score, height)

    @torch.no_grad()
    def _reference_logp(self, block: TokenBlock, *, height: int, run: bool) -> Tensor:
        """Returns the log-probs [T] of sampled tokens under the frozen base; 0 elsewhere.

        Args:
            height: the most sampled tokens that any rank has in its micro-batch.
            run: whether some rank has completions in its micro-batch. The others run the model
                along with it, because FSDP2 gathers the weights on all ranks.
        """
        targets, sampled = block.tables.targets, block.tables.policy_row >= 0
        if not run or self.reference is None:
            return torch.zeros(targets.shape)

        def score(hidden: Tensor, weight: Tensor | HeadShard, bias: Tensor | None) -> Tensor:
            return linear_logprob(
                hidden,
                weight,
                targets.where(sampled, IGNORE_INDEX),
                bias=bias,
                temperature=self.config.rollout.temperature,
                ignore_index=IGNORE_INDEX,
                options=self.objective.options,
            ).logp

        return self.reference([block.ids], score, height)

    def _most_live(self, parts: Sequence[Sequence[Row]], rewards: Tensor) -> int:
        """The most positions with loss in the micro-batch of any rank, for a sharded head."""
        if not self.policy.head_is_sharded:
            return 0
        batches = [_batch(count_tables(rows), rewards) for rows in parts]
        return max(int(self.objective.token_weights(batch).live.sum()) for batch in batches)

    def _at_sampling_temperature(
        self, hidden: Tensor, block: TokenBlock, bias: Tensor | None
    ) -> Tensor:
        """Divides the rollouts' hidden states by the temperature that they were sampled at."""
        temperature = self.config.rollout.temperature
        if temperature == 1.0 or not block.is_rollout:
            return hidden
        if bias is not None:
            raise UserError(
                f"rollout.temperature: {temperature} given, wanted 1 for a head with a bias"
            )
        return hidden / temperature


def _most_sampled(parts: Sequence[Sequence[Row]]) -> int:
    """The most sampled tokens in the micro-batch of any rank."""
    return max(sum(len(row.answer) for row in rows if row.is_rollout) for rows in parts)


def _batch(tables: RowTables, rewards: Tensor, reference_logp: Tensor | None = None) -> HybridBatch:
    """The loss's tables; ``rewards`` are the whole step's, which the advantages need."""
    return HybridBatch(
        tables.targets, tables.policy_row, tables.anchor_row, rewards, ref_logp=reference_logp
    )
