"""Collects the rollouts of a step: samples, has them rewarded, and shares them with all ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Completion, Example
from wavalign_fast.rollout import end_ids, sample_with_logps, uniforms
from wavalign_fast.rollout.twin import Twin
from wavalign_fast.train.exchange import everywhere, own_prompts
from wavalign_fast.train.model_setup import sampling_dtype
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.rewards import Rewarder
from wavalign_fast.train.task_protocol import Task


def sampling_twin(policy: Policy, config: RunConfig) -> Twin:
    """Makes the model that samples for a policy, in the dtype of the configuration."""
    return Twin(policy.model, sampling_dtype(config), root=policy, keep=config.rollout.keep_copy)


class Collector:
    """Samples completions of the prompts of a step with the policy's present weights.

    Each rank samples and judges its share of the prompts. A completion depends on the seed, the
    step and its place in the step, not on the rank it is sampled on.
    """

    def __init__(
        self, config: RunConfig, task: Task, twin: Twin, ranks: Ranks, *, rewarded: bool = True
    ) -> None:
        self.config = config.rollout
        self.seed = config.train.seed
        self.task = task
        self.ranks = ranks
        self.twin = twin
        self.rewarder = Rewarder(task) if rewarded else None
        self.ends = end_ids(task.eos_id)
        self.prompt_embeddings = getattr(task, "prompt_embeddings", None)

    def __call__(
        self, examples: Sequence[Example], step: int, clock: Stopwatch
    ) -> tuple[list[Completion], Tensor]:
        """Returns all completions of the step, and their rewards, float32 [B, G], on every rank.

        Args:
            examples: the prompts of the step, the same on all ranks.
            step: the number of the step, which selects the random numbers.
        """
        mine: list[Completion] = []
        rewards = torch.empty(0)
        with clock("rollout"):
            self.twin.refresh()
        with self.ranks.failing_together():
            with clock("rollout"):
                mine = self._sample(examples, step)
                self.twin.release()  # before the judge, which may need memory too
            with clock("reward"):
                rewards = torch.full((len(mine),), torch.nan)
                if self.rewarder is not None:
                    rewards = self.rewarder(mine)
        with clock("exchange"):
            return everywhere(mine, rewards, examples, self.config.group_size, self.ranks)

    def _sample(self, examples: Sequence[Example], step: int) -> list[Completion]:
        prompts = own_prompts(len(examples), self.ranks)
        if not prompts:
            return []
        group, length = self.config.group_size, self.config.max_new_tokens
        places = torch.tensor([[prompt, g] for prompt in prompts for g in range(group)])
        sampled = sample_with_logps(
            self.twin.model,
            [examples[prompt].prompt_ids for prompt in prompts],
            group_size=group,
            max_new_tokens=length,
            eos_id=self.task.eos_id,
            pad_id=self.task.pad_id,
            temperature=self.config.temperature,
            prompt_embeddings=self.prompt_embeddings,
            draws=uniforms(self.seed, step, places[:, 0], places[:, 1], torch.arange(length)),
        )
        return [
            Completion(
                example=examples[prompt],
                ids=tuple(ids),
                ended=bool(ids) and ids[-1] in self.ends,
                logps=logps,
            )
            for prompt, ids, logps in zip(
                places[:, 0].tolist(), sampled.ids, sampled.logps, strict=True
            )
        ]
