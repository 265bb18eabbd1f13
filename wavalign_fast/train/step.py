"""Computes one optimizer step, up to and including the backward pass, on all ranks together."""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Example
from wavalign_fast.errors import UserError
from wavalign_fast.losses import (
    HybridOutput,
    MetricTotals,
    MixingGate,
    mismatch_totals,
    truncated_importance,
)
from wavalign_fast.losses.metric_names import with_released_names
from wavalign_fast.ops.transfer import copied_to, copied_together
from wavalign_fast.train.collect import Collected, Collector, sampling_twin
from wavalign_fast.train.engines import check_logp_diff
from wavalign_fast.train.micro_batch import MicroBatch, score_rollouts
from wavalign_fast.train.mtp import MtpLoss
from wavalign_fast.train.nonfinite_rows import NonFiniteRows
from wavalign_fast.train.objective import build_objective, find_loss_ids
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import GradientAccumulation, Head, Policy, WithoutLora
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step_batch import Mixture, StepBatch, StepRows
from wavalign_fast.train.step_metrics import (
    as_floats,
    completion_metrics,
    mismatch_metrics,
    named_metrics,
    over_ranks,
)
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.token_blocks import (
    TokenBlock,
)


@dataclass(frozen=True)
class StepResult:
    """What an update computed besides the gradients; the same on all ranks."""

    metrics: dict[str, float]
    broken: NonFiniteRows = field(repr=False)
    empty: bool = False
    """Whether nothing was learnt from, so that the weights must not move."""


class TrainStep:
    """Rollouts → reference log-probs → rewards → hybrid loss → gradients.

    A task that can start its rewards works on them while the rollouts are scored, and while the
    layers of the first micro-batch run.

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
        self.mtp: MtpLoss | None = None
        if policy.mtp is not None:
            given = config.anchor.mtp_loss_weight
            weight: Any = policy.mtp.loss_weight if given == "model" else given
            self.mtp = MtpLoss(policy.mtp, weight=float(weight), learnt=self.loss_ids.anchor)
        self.twin = sampling_twin(policy, config)
        self.collect = Collector(config, task, self.twin, ranks)
        self.rows = StepRows(
            config,
            self.objective,
            self.loss_ids,
            policy,
            ranks,
            pad_id=task.pad_id,
            kl=reference is not None,
        )
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
        count = self.config.anchor.rows if self.config.needs_anchor else 0
        begun: StepBatch | None = None
        with self.ranks.failing_together():
            # Every rank draws all demonstrations, with the same numbers.
            rng = random.Random(f"demonstrations:{self.config.train.seed}:{step}")
            shown = self.task.demonstrations(examples[:count], rng) if count else []
            if self.rows.depend_on_rewards:
                begun = self.rows.begun(collected, shown)
        if begun is not None:
            return begun
        rewards = collected.unknown
        if self.rows.depend_on_rewards:
            rewards = collected.rewards(clock)
        with clock("forward_backward"):
            return self.rows.whole(collected, shown, rewards)

    def backward(self, batch: StepBatch, clock: Stopwatch) -> StepResult:
        """Adds the gradients of one update to the model.

        The second and later ones of a batch are off-policy: their ratios are those to the policy
        before the first one.
        """
        examples = [done.example.id for done in batch.completions]
        broken = NonFiniteRows(lambda row: f"rollout {row} (prompt {examples[row]})")
        self.policy.train()
        if batch.mixture is None:
            for micro in batch.micro_batches:
                self._score(micro, clock)
        parts, mtp = self._backward(batch, broken, clock)
        assert batch.mixture is not None
        with clock("exchange"):
            totals = over_ranks(parts, self.ranks)
            mtp_sums = None if self.mtp is None else self.ranks.sum(mtp)
        batch.updates += 1
        rewards = batch.mixture.rewards
        metrics = named_metrics(
            totals.means() | batch.mixture.metrics,
            rollouts=rewards.numel() > 0,
            rewarded=not bool(rewards.isnan().all()),
            anchored=batch.anchored,
        )
        if self.mtp is not None and batch.anchored:
            assert mtp_sums is not None and batch.mtp_counts is not None
            metrics["loss/mtp"] = (mtp_sums / batch.mtp_counts).mean()
            metrics["loss/total"] = metrics["loss/total"] + self.mtp.share(
                mtp_sums, batch.mtp_counts, batch.mixture.rl_weight
            )
        metrics |= mismatch_metrics(totals) | completion_metrics(batch.completions)
        found = as_floats(metrics) | batch.collected.metrics
        check_logp_diff(found, self.config.rollout)
        return StepResult(found, broken)

    def _mixture(self, batch: StepBatch, clock: Stopwatch) -> Mixture:
        """Returns λ and the metrics of rewards and gate; the first call waits for the rewards.

        It then knows which rows are left to be computed.
        """
        if batch.mixture is not None:
            return batch.mixture
        rewards = batch.collected.rewards(clock)
        self.rows.complete(batch, rewards)
        gate = self.objective.gate
        gate_metrics: dict[str, Tensor] = {}
        if isinstance(gate, MixingGate):
            rl_weight, gate_metrics = gate.step(rewards, self.objective.options, reduce=False)
        else:
            rl_weight = torch.tensor(float(gate))
        metrics = self.objective.reward_metrics(rewards) | gate_metrics
        metrics |= with_released_names({"rl_weight": rl_weight})
        batch.mixture = Mixture(rewards, rl_weight, metrics)
        return batch.mixture

    def _backward(
        self, batch: StepBatch, broken: NonFiniteRows, clock: Stopwatch
    ) -> tuple[list[MetricTotals], Tensor]:
        """Runs forward and backward over this rank's micro-batches.

        Returns the metrics of each, and the sums of −log p of the MTP layers, [K].
        """
        first = batch.updates == 0
        again = batch.updates + 1 < self.config.train.updates_per_rollout
        totals = []
        mtp_sums = torch.zeros(0 if self.mtp is None else self.mtp.layers)
        # The list may grow in the first forward pass, which waits for the rewards.
        for turn, micro in enumerate(batch.micro_batches):
            with clock("forward_backward"):
                out, mtp = self._forward(batch, micro, broken, clock)
                self.accumulation.before(last=turn + 1 == len(batch.micro_batches))
                loss = out.loss
                if mtp is not None:
                    loss = loss + self._mtp_share(batch, mtp, clock)
                    mtp_sums += mtp.detach().cpu()
                loss.backward()
            totals.append(out.totals)
            if first and self.config.needs_rollouts:
                totals.append(self._mismatch(micro, out.logp, self._mixture(batch, clock).rewards))
            if first and again:
                micro.old_logp = out.logp
        self.accumulation.after()
        return totals, mtp_sums

    def _mtp_share(self, batch: StepBatch, sums: Tensor, clock: Stopwatch) -> Tensor:
        assert self.mtp is not None
        if batch.mtp_counts is None:
            batch.mtp_counts = self.mtp.counts(batch.rows)
        return self.mtp.share(sums, batch.mtp_counts, self._mixture(batch, clock).rl_weight)

    def _score(self, micro: MicroBatch, clock: Stopwatch) -> None:
        """Computes the log-probs that are constants of the updates, of one micro-batch."""
        # A rank without completions runs the model along with one that has some, because FSDP2
        # gathers the weights on all ranks.
        run = micro.sampled > 0
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
        self, batch: StepBatch, micro: MicroBatch, broken: NonFiniteRows, clock: Stopwatch
    ) -> tuple[HybridOutput, Tensor | None]:
        def score(
            hidden: Tensor, weight: Head, bias: Tensor | None
        ) -> tuple[HybridOutput, Tensor | None]:
            broken.watch(hidden, micro.block.tables)
            # Here, behind the layers, so that the judge has their time, too.
            mixture = self._mixture(batch, clock)
            out = self.objective(
                self._at_sampling_temperature(hidden, micro.block, bias),
                weight,
                micro.batch(mixture.rewards),
                bias=bias,
                rl_weight=mixture.rl_weight,
                normalisers=batch.normalisers,
                transform=self.policy.transform,
            )
            # Behind the loss, so that its backward pass is the first: FSDP2 reduces the gradients
            # of norm and head when that of the layers begins.
            if self.mtp is None or not micro.anchored:
                return out, None
            return out, self.mtp.sums(self.policy, micro.block, hidden)

        return self.policy([micro.block.ids], score, micro.live)

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
