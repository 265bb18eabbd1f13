"""Collects the rollouts of a step: samples, has them rewarded, and shares them with all ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Completion, Example
from wavalign_fast.rollout import end_ids
from wavalign_fast.rollout.engine import Rollout, RolloutRequest
from wavalign_fast.rollout.twin import Twin
from wavalign_fast.train.engines import rollout_engine
from wavalign_fast.train.exchange import (
    everywhere,
    metrics_everywhere,
    own_prompts,
    rewards_everywhere,
)
from wavalign_fast.train.model_setup import sampling_dtype
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.rewards import Rewarder, StartedRewards
from wavalign_fast.train.task_protocol import Task


def sampling_twin(policy: Policy, config: RunConfig) -> Twin:
    """Makes the model that samples for a policy, in the dtype of the configuration."""
    return Twin(policy.model, sampling_dtype(config), root=policy, keep=config.rollout.keep_copy)


class Collected:
    """The completions of a step, and its rewards once they are there.

    Args:
        started: the rewards of this rank's completions.
        prompts: how many prompts the step has.
        sampling: metrics of the engine, of all ranks.
    """

    def __init__(
        self,
        completions: list[Completion],
        started: StartedRewards,
        *,
        prompts: int,
        group_size: int,
        ranks: Ranks,
        sampling: dict[str, float] | None = None,
    ) -> None:
        self.completions = completions
        self._started = started
        self._shape = (prompts, group_size)
        self._ranks = ranks
        self._rewards: Tensor | None = None
        self.metrics: dict[str, float] = sampling or {}
        """What the engine and, with the rewards, the task tell about the step, of all ranks."""

    @classmethod
    def nothing(cls, group_size: int) -> "Collected":
        """What a step without rollouts has."""
        none = StartedRewards(lambda: torch.empty(0), dict)
        return cls([], none, prompts=0, group_size=group_size, ranks=Ranks())

    @property
    def unknown(self) -> Tensor:
        """A table of the rewards' shape without any reward."""
        return torch.full(self._shape, torch.nan)

    def rewards(self, clock: Stopwatch) -> Tensor:
        """Returns the rewards float32 [B, G], on every rank; the first call waits for them.

        Every rank must make the first call at the same place.
        """
        if self._rewards is not None:
            return self._rewards
        mine, metrics = torch.empty(0), {}
        with self._ranks.failing_together(), clock("reward"):
            mine, metrics = self._started.result(), dict(self._started.metrics())
        with clock("exchange"):
            self._rewards = rewards_everywhere(mine, *self._shape, self._ranks)
            self.metrics |= metrics_everywhere(metrics, self._ranks)
        return self._rewards


class Collector:
    """Samples completions of the prompts of a step with the policy's present weights.

    Each rank samples and judges its share of the prompts. A completion of the built-in sampler
    depends on the seed, the step and its place in the step, not on the rank it is sampled on.
    """

    def __init__(
        self, config: RunConfig, task: Task, twin: Twin, ranks: Ranks, *, rewarded: bool = True
    ) -> None:
        self.config = config.rollout
        self.seed = config.train.seed
        self.task = task
        self.ranks = ranks
        self.engine = rollout_engine(config, task, twin, ranks)
        self._ages = torch.zeros(3, dtype=torch.float64)  # sum, count and largest of this rank's
        self.rewarder = Rewarder(task) if rewarded else None
        self.ends = end_ids(task.eos_id)

    def __call__(self, examples: Sequence[Example], step: int, clock: Stopwatch) -> Collected:
        """Returns all completions of the step on every rank; their rewards may still be missing.

        Args:
            examples: the prompts of the step, the same on all ranks.
            step: the number of the step, which selects the random numbers.
        """
        mine: list[Completion] = []
        started = StartedRewards(lambda: torch.full((len(mine),), torch.nan), dict)
        with clock("rollout"):
            self.engine.set_weights(step)
        with self.ranks.failing_together():
            with clock("rollout"):
                mine = self._sample(examples, step)
                self.engine.release()  # before the judge, which may need memory too
            with clock("reward"):
                if self.rewarder is not None:
                    started = self.rewarder.start(mine)
        with clock("exchange"):
            completions = everywhere(mine, examples, self.config.group_size, self.ranks)
            ages = {} if self.config.engine == "builtin" else self._staleness_over_ranks()
        return Collected(
            completions,
            started,
            prompts=len(examples),
            group_size=self.config.group_size,
            ranks=self.ranks,
            sampling=ages,
        )

    def _sample(self, examples: Sequence[Example], step: int) -> list[Completion]:
        prompts = own_prompts(len(examples), self.ranks)
        self._ages = torch.zeros(3, dtype=torch.float64)
        if not prompts:
            return []
        request = RolloutRequest(
            prompt_ids=[examples[prompt].prompt_ids for prompt in prompts],
            places=prompts,
            step=step,
            seed=self.seed,
            group_size=self.config.group_size,
            max_new_tokens=self.config.max_new_tokens,
            ends=self.ends,
            temperature=self.config.temperature,
        )
        sampled = self.engine.sample(request)
        self._count_staleness(sampled, step)
        return [
            Completion(
                example=examples[prompts[row // request.group_size]],
                ids=tuple(done.ids),
                ended=done.ended,
                logps=done.logps,
            )
            for row, done in enumerate(sampled)
        ]

    def _count_staleness(self, sampled: Sequence[Rollout], step: int) -> None:
        """Counts by how many steps the weights that sampled this rank's ids are older."""
        ages = step - torch.cat([done.versions for done in sampled]).to(torch.float64)
        self._ages = torch.stack([ages.sum(), torch.tensor(float(len(ages))), ages.max()])

    def _staleness_over_ranks(self) -> dict[str, float]:
        total, count, _ = self.ranks.sum(self._ages)
        (oldest,) = self.ranks.largest([float(self._ages[2])])
        return {
            "rollout/staleness_mean": float(total / count),
            "rollout/staleness_max": oldest,
        }
