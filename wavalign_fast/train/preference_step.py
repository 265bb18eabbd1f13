"""Computes one step of DPO, up to and including the backward pass, on all ranks together."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Completion, Example, Preference
from wavalign_fast.losses import SPEECH, DPOOutput, MetricTotals, fused_dpo_loss
from wavalign_fast.losses.metrics import reward_metrics
from wavalign_fast.losses.two_heads import TwoHeads
from wavalign_fast.models.attention import TAKES_BORDERS
from wavalign_fast.ops import IGNORE_INDEX, LossOptions
from wavalign_fast.train.collect import Collected, Collector, sampling_twin
from wavalign_fast.train.deal import deal, rounds
from wavalign_fast.train.flops import StepTokens
from wavalign_fast.train.nonfinite_rows import NonFiniteRows
from wavalign_fast.train.pairs import (
    PairRows,
    best_and_worst,
    by_example,
    offline_pair,
    pair_rows,
    with_demonstrations,
)
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import GradientAccumulation, Head, Policy, WithoutLora
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step import StepResult
from wavalign_fast.train.step_metrics import (
    as_floats,
    as_tensors,
    completion_metrics,
    over_ranks,
    preference_metrics,
    rewards_of_rollouts,
)
from wavalign_fast.train.step_work import step_work
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.token_blocks import LossIds, TokenBlock, lay_out


@dataclass
class PairBlock:
    """A micro-batch of pairs. Without pairs it is the idle block."""

    block: TokenBlock
    sequence: Tensor
    """int64 [T], the row of each position in the block."""
    pairs: Tensor
    """int64 [P, 2], rows in the block: chosen, rejected."""
    rows: int
    live: int
    """The most ids in scope in the micro-batch of any rank."""
    ref_logp: Tensor | None = None
    """[rows], log-probs of the answers under the reference, once they are known."""

    @classmethod
    def of(cls, pairs: Sequence[PairRows], pad_id: int, *, packed: bool, live: int) -> "PairBlock":
        """Lays out the rows of ``pairs``, the two of a pair side by side."""
        rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        block = lay_out(rows, pad_id, packed=packed)
        place = torch.zeros(max((row.index for row in rows), default=0) + 1, dtype=torch.int64)
        place[[row.index for row in rows]] = torch.arange(len(rows))
        return cls(
            block=block,
            sequence=place[block.tables.policy_row.clamp(min=0)],
            pairs=torch.arange(len(rows)).view(-1, 2),
            rows=max(len(rows), 1),
            live=live,
        )

    @property
    def targets(self) -> Tensor:
        """int64 [T], -100 outside answers."""
        tables = self.block.tables
        return tables.targets.where(tables.policy_row >= 0, IGNORE_INDEX)


@dataclass
class PairBatch:
    """The pairs of a step, which one or several updates are computed from."""

    blocks: list[PairBlock]
    """Those of this rank, with idle ones up to the number of the busiest rank."""
    pairs: int
    """How many pairs the loss is a mean of, over all ranks."""
    names: Sequence[str]
    """What row n is called."""
    constants: dict[str, Tensor]
    """Metrics that are the same in every update."""
    tokens: int
    work: StepTokens


class PreferenceStep:
    """Preference pairs → reference log-probs → DPO loss → gradients.

    All ranks have all pairs of the step. Each computes the share of the loss of the pairs that are
    dealt to it; the two answers of a pair stay together.

    Args:
        offline: the offline pairs, none for ``dpo.pairs: online``.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        policy: Policy,
        reference: Policy | WithoutLora,
        ranks: Ranks,
        offline: Sequence[Preference],
    ) -> None:
        self.config = config
        self.task = task
        self.policy = policy
        self.reference = reference
        self.ranks = ranks
        self.offline = by_example(offline)
        self.data: Sequence[Any] = task.train_examples
        if config.dpo.pairs == "offline":
            self.data = offline
        self.options = LossOptions(backend=config.loss.backend)
        speech = task.layout.classify(torch.arange(task.layout.vocab_size)) == SPEECH
        in_scope = {"all": speech | ~speech, "speech": speech, "text": ~speech}
        self.counts: list[bool] = in_scope[config.dpo.scope].tolist()
        self.rewarded = config.dpo.chosen == "best"
        self.twin = sampling_twin(policy, config)
        self.collect = Collector(config, task, self.twin, ranks, rewarded=self.rewarded)
        self.accumulation = GradientAccumulation(policy, config.parallel, ranks)
        self.packed = config.model.attention in TAKES_BORDERS

    @property
    def examples_needed(self) -> int:
        """Number of ``data`` per step: training examples, or offline pairs."""
        return self.config.rollout.prompts

    def state_dict(self) -> dict[str, Any]:
        """Returns what a step changes besides the weights: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""

    def prepare(self, examples: Sequence[Any], step: int, clock: Stopwatch) -> PairBatch:
        """Makes and lays out the pairs of step number ``step``.

        Args:
            examples: what is taken of ``data``, the same on all ranks.
        """
        offline: list[Preference] = list(examples)
        prompts: list[Example] = []
        if self.config.dpo.pairs != "offline":
            seed = self.config.train.seed
            found = [offline_pair(self.offline, one.id, seed=seed, step=step) for one in examples]
            offline = [pair for pair in found if pair is not None]
            prompts = [one for one, pair in zip(examples, found, strict=True) if pair is None]
        collected = Collected.nothing(self.config.rollout.group_size)
        if prompts:
            collected = self.collect(prompts, step, clock)
        completions, rewards = collected.completions, collected.rewards(clock)
        with self.ranks.failing_together():
            online = self._online(prompts, completions, rewards, step)
            pairs = [*offline, *online]
            rows = pair_rows(pairs, self.counts, self.policy.vectors)
        dealt = deal(
            rows,
            world=self.ranks.world,
            block_tokens=self.config.train.block_tokens,
            packed=self.packed,
        )
        count, _ = rounds(dealt)
        made = {"pairs/offline": len(offline), "pairs/online": len(online)}
        made |= {"pairs/used": len(rows), "pairs/out_of_scope": len(pairs) - len(rows)}
        constants = {name: torch.tensor(float(number)) for name, number in made.items()}
        if self.rewarded and completions:
            constants |= rewards_of_rollouts(reward_metrics(rewards, "population"), rewards)
        constants |= as_tensors(collected.metrics)
        flat = [row for pair in rows for row in (pair.chosen, pair.rejected)]
        return PairBatch(
            blocks=[
                self._block([mine[turn] if turn < len(mine) else [] for mine in dealt])
                for turn in range(max(count, 1))
            ],
            pairs=len(rows),
            names=[
                f"{side} answer {number} ({pair.example_id or 'offline'})"
                for number, pair in enumerate(pairs)
                for side in ("chosen", "rejected")
            ],
            constants=constants | completion_metrics(completions),
            tokens=sum(len(row.prompt) + len(row.answer) for row in flat),
            work=step_work(
                flat,
                completions,
                loss_ids=LossIds(self.counts, self.counts),
                group_size=self.config.rollout.group_size,
                updates=self.config.train.updates_per_rollout,
                scored=1,
            ),
        )

    def _block(self, parts: Sequence[list[PairRows]]) -> PairBlock:
        """Returns this rank's micro-batch of a turn, whose pairs on every rank are ``parts``."""
        live = max(sum(self._in_scope(pair) for pair in pairs) for pairs in parts)
        return PairBlock.of(parts[self.ranks.rank], self.task.pad_id, packed=self.packed, live=live)

    def _in_scope(self, pair: PairRows) -> int:
        answers = (*pair.chosen.answer, *pair.rejected.answer)
        return sum(map(self.counts.__getitem__, answers))

    def _online(
        self,
        prompts: Sequence[Example],
        completions: Sequence[Completion],
        rewards: Tensor,
        step: int,
    ) -> list[Preference]:
        if self.rewarded:
            return best_and_worst(completions, rewards, min_gap=self.config.dpo.min_gap)
        rng = random.Random(f"demonstrations:{self.config.train.seed}:{step}")
        shown = self.task.demonstrations(prompts, rng) if prompts else []
        return with_demonstrations(completions, shown)

    def backward(self, batch: PairBatch, clock: Stopwatch) -> StepResult:
        """Adds the gradients of one update to the model."""
        broken = NonFiniteRows(lambda row: batch.names[row])
        self.policy.train()
        totals: list[MetricTotals] = []
        for turn, block in enumerate(batch.blocks):
            if block.ref_logp is None:
                with clock("reference"), torch.no_grad():
                    block.ref_logp = self._loss(self.reference, block, batch.pairs).sequence_logp
            with clock("forward_backward"):
                self.accumulation.before(last=turn + 1 == len(batch.blocks))
                out = self._loss(self.policy, block, batch.pairs, broken)
                out.loss.backward()
            totals.append(out.totals)
        self.accumulation.after()
        with clock("exchange"):
            summed = over_ranks(totals, self.ranks)
        metrics = preference_metrics(summed) | batch.constants
        return StepResult(as_floats(metrics), broken, empty=batch.pairs == 0)

    def _loss(
        self,
        model: Policy | WithoutLora,
        block: PairBlock,
        pairs: int,
        broken: NonFiniteRows | None = None,
    ) -> DPOOutput:
        dpo = self.config.dpo

        def score(hidden: Tensor, weight: Head, bias: Tensor | None) -> DPOOutput:
            assert not isinstance(weight, TwoHeads)  # `check_options` refuses two streams
            if broken is not None:
                broken.watch(hidden, block.block.tables)
            return fused_dpo_loss(
                hidden,
                weight,
                block.targets,
                block.sequence,
                block.pairs,
                layout=self.task.layout,
                scope=dpo.scope,
                beta=dpo.beta,
                ref_logp=torch.zeros(block.rows) if broken is None else block.ref_logp,
                # Of the reference it wants sums, and divides them itself.
                length_normalised=dpo.length_normalised and broken is not None,
                normaliser=float(max(pairs, 1)),
                bias=bias,
                transform=model.transform,
                options=self.options,
            )

        return model([block.block.ids], score, block.live)
