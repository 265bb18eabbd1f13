"""The rows of a step as micro-batches, part of which may be laid out once the rewards are there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Completion, Demonstration
from wavalign_fast.losses import Normalisers, group_advantages
from wavalign_fast.models.attention import TAKES_BORDERS
from wavalign_fast.train.collect import Collected
from wavalign_fast.train.deal import deal
from wavalign_fast.train.flops import StepTokens
from wavalign_fast.train.micro_batch import MicroBatch
from wavalign_fast.train.objective import Objective
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step_work import step_work
from wavalign_fast.train.token_blocks import LossIds, Row, count_tables, lay_out, step_rows

Dealt = Sequence[list[list[Row]]]
"""The micro-batches of every rank, as rows."""


@dataclass(frozen=True)
class Mixture:
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
    shown: Sequence[Demonstration]
    micro_batches: list[MicroBatch]
    """Those of this rank, with idle ones up to the number of the busiest rank. Until the rewards
    are there it may be the first one alone."""
    waiting: Dealt | None = None
    """Where ``micro_batches`` is the first one alone: the demonstrations of every rank."""
    rows: Sequence[Row] = ()
    """Those of all ranks; empty as long as ``waiting``."""
    updates: int = 0
    """How many were computed."""
    mixture: Mixture | None = None
    """What the gradients need of the rewards, once those are there."""
    normalisers: Normalisers | None = None
    """The denominators of the loss, once all rows are known."""
    mtp_counts: Tensor | None = None
    """[K], how many ids each MTP layer learns, if there are any; likewise."""
    work: StepTokens = field(default_factory=StepTokens)
    """The tokens by what is computed of them, over all ranks and updates; likewise."""

    @property
    def completions(self) -> Sequence[Completion]:
        """Those of all ranks."""
        return self.collected.completions

    @property
    def tokens(self) -> int:
        """Ids of the prompts and answers."""
        done = sum(len(one.example.prompt_ids) + len(one.ids) for one in self.completions)
        return done + sum(len(pair.prompt_ids) + len(pair.answer_ids) for pair in self.shown)

    @property
    def anchored(self) -> bool:
        """Whether some demonstration is learnt."""
        return any(not row.is_rollout for row in self.rows)


class StepRows:
    """Cuts, deals and lays out the rows of steps.

    Where the rewards decide which completions are computed, and every rank has a demonstration, the
    first micro-batch of each rank is one of demonstrations. It is the same whatever the rewards
    are, so that its forward pass need not wait for them.
    """

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        loss_ids: LossIds,
        policy: Policy,
        ranks: Ranks,
        *,
        pad_id: int,
        kl: bool,
    ) -> None:
        self.config = config
        self.objective = objective
        self.loss_ids = loss_ids
        self.policy = policy
        self.ranks = ranks
        self.pad_id = pad_id
        self.kl = kl
        self.packed = config.model.attention in TAKES_BORDERS

    @property
    def depend_on_rewards(self) -> bool:
        """Whether the rewards decide which completions are computed."""
        return not self.kl and self.config.loss.normalisation != "token"

    def begun(self, collected: Collected, shown: Sequence[Demonstration]) -> StepBatch | None:
        """Returns a batch of the first micro-batches alone, which no reward changes.

        ``None`` if there is none for each rank, or if completions are scored before all of them.
        """
        rows = self._cut([], shown)
        if len(rows) < self.ranks.world or self.config.loss.importance_cap is not None:
            return None
        waiting = self._dealt(rows)
        first = self._micro_batch([part[0] if part else [] for part in waiting], collected)
        return StepBatch(collected, shown, [first], waiting)

    def whole(
        self, collected: Collected, shown: Sequence[Demonstration], rewards: Tensor
    ) -> StepBatch:
        """Returns the batch of all rows."""
        with self.ranks.failing_together():
            rows = self._cut(collected.completions, shown, self._without_gradient(rewards))
        batch = StepBatch(collected, shown, [])
        self._fill(batch, rows, self._dealt(rows))
        return batch

    def complete(self, batch: StepBatch, rewards: Tensor) -> None:
        """Adds to a batch of the first micro-batches what the rewards leave to be computed."""
        if batch.waiting is None:
            return
        begun, batch.waiting = batch.waiting, None
        with self.ranks.failing_together():
            rows = self._cut(batch.completions, batch.shown, self._without_gradient(rewards))
        sampled = self._dealt([row for row in rows if row.is_rollout], beside=begun)
        others = [[*own, *part[1:]] for own, part in zip(sampled, begun, strict=True)]
        self._fill(batch, rows, others)

    def _fill(self, batch: StepBatch, rows: Sequence[Row], dealt: Dealt) -> None:
        count = max(map(len, dealt), default=0)
        if not batch.micro_batches:
            count = max(count, 1)
        turns = [
            [part[turn] if turn < len(part) else [] for part in dealt] for turn in range(count)
        ]
        batch.micro_batches += [self._micro_batch(parts, batch.collected) for parts in turns]
        tables = count_tables(rows).batch(batch.collected.unknown)
        batch.rows, batch.normalisers = rows, self.objective.normalisers(tables)
        batch.work = step_work(
            rows,
            batch.completions,
            loss_ids=self.loss_ids,
            group_size=self.config.rollout.group_size,
            updates=self.config.train.updates_per_rollout,
            scored=self.kl + (self.config.loss.importance_cap is not None),
            ids_a_position=1 if self.policy.streams is None else 2,
        )

    def _cut(
        self,
        completions: Sequence[Completion],
        shown: Sequence[Demonstration],
        skipped: frozenset[int] = frozenset(),
    ) -> list[Row]:
        return step_rows(
            completions, shown, loss_ids=self.loss_ids, skipped=skipped, vectors=self.policy.vectors
        )

    def _without_gradient(self, rewards: Tensor) -> frozenset[int]:
        """Returns the completions without an advantage or a KL, which cannot change the loss.

        All completions of their group have the same reward. They still count in every mean of the
        loss and of the rewards; only the model's forward and backward pass over them is skipped. A
        mean over tokens needs their tokens, so nothing is skipped then.
        """
        if not self.depend_on_rewards or rewards.numel() == 0:
            return frozenset()
        advantages = group_advantages(
            rewards, std=self.config.loss.advantage_std, options=self.objective.options
        )
        return frozenset((advantages.flatten() == 0).nonzero().flatten().tolist())

    def _dealt(self, rows: Sequence[Row], beside: Dealt = ()) -> Dealt:
        return deal(
            rows,
            world=self.ranks.world,
            block_tokens=self.config.train.block_tokens,
            packed=self.packed,
            beside=beside,
        )

    def _micro_batch(self, parts: Sequence[list[Row]], collected: Collected) -> MicroBatch:
        """Returns this rank's micro-batch of a turn, whose rows on every rank are ``parts``."""
        live = 0
        if self.policy.head_is_sharded:
            batches = [count_tables(rows).batch(collected.unknown) for rows in parts]
            live = max(int(self.objective.token_weights(batch).live.sum()) for batch in batches)
        sampled = max(sum(len(row.answer) for row in rows if row.is_rollout) for rows in parts)
        rows = parts[self.ranks.rank]
        block = lay_out(rows, self.pad_id, packed=self.packed)
        return MicroBatch.of(
            block,
            rows,
            collected.completions,
            live=live,
            sampled=sampled,
            anchored=any(not row.is_rollout for rows in parts for row in rows),
        )
