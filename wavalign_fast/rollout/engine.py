"""What samples the completions of a step: the interface, and the sampler of this package behind it.

Token ids go in, and ids with their log-probs come out. An engine elsewhere, such as vLLM, has
weights of its own; each id therefore carries the version of the weights that sampled it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wavalign_fast.models import PromptEmbeddings, TwoStreams
from wavalign_fast.rollout.draws import uniforms
from wavalign_fast.rollout.sampling import sample_with_logps
from wavalign_fast.rollout.twin import Twin


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """The completions that a rank asks for in a step: ``group_size`` of each of B prompts."""

    prompt_ids: Sequence[Sequence[int]]
    """B sequences of ids."""
    places: Sequence[int]
    """B numbers: the place of each prompt among those of the step, on all ranks."""
    step: int
    """Number of the step. With the seed and the place it selects the random numbers."""
    seed: int
    group_size: int
    max_new_tokens: int
    ends: frozenset[int]
    """Ids that end a completion."""
    temperature: float


class Rollout(NamedTuple):
    """One completion."""

    ids: list[int]
    """The sampled ids, including the end id if it was sampled."""
    logps: Tensor
    """float32 [len(ids)] on the CPU, the log-probs that the ids were sampled with."""
    versions: Tensor
    """int32 [len(ids)], the step for which the weights were sent that sampled each id."""
    ended: bool
    """Whether an end id was sampled; else the length limit ended it."""


class RolloutEngine(Protocol):
    """Samples completions with the policy's weights."""

    def set_weights(self, step: int) -> None:
        """Gives the engine the policy's weights of now, for ``step``. All ranks call it."""
        ...

    def sample(self, request: RolloutRequest) -> list[Rollout]:
        """Returns B·G completions in the order of the prompts. Each rank calls it for its own."""
        ...

    def release(self) -> None:
        """Frees memory that only sampling needs, until the next ``set_weights``."""
        ...

    def close(self) -> None:
        """Ends what the engine has started. A later ``set_weights`` starts it again."""
        ...


class BuiltinEngine:
    """The sampler of this package, in this process.

    Args:
        twin: the model that samples.
        pad_id: any id of the vocabulary, for padding.
        prompt_embeddings: the vectors that prompts name by ids behind the vocabulary, if any do.
        streams: how the ids of two streams stand in one list, for a model that has two.
    """

    def __init__(
        self,
        twin: Twin,
        pad_id: int,
        prompt_embeddings: PromptEmbeddings | None = None,
        streams: TwoStreams | None = None,
    ) -> None:
        self.twin = twin
        self.pad_id = pad_id
        self.prompt_embeddings = prompt_embeddings
        self.streams = streams

    def set_weights(self, step: int) -> None:
        """Copies the policy's weights into the model that samples, if that is a copy."""
        self.twin.refresh()

    def sample(self, request: RolloutRequest) -> list[Rollout]:
        """Returns the completions; each depends on seed, step and place, not on the batch.

        Raises:
            ValueError: an id without an embedding, or an empty prompt.
            UserError: the model's logits are no distribution.
        """
        group, length = request.group_size, request.max_new_tokens
        rows = torch.tensor([[place, g] for place in request.places for g in range(group)])
        sampled = sample_with_logps(
            self.twin.model,
            request.prompt_ids,
            group_size=group,
            max_new_tokens=length,
            eos_id=request.ends or None,
            pad_id=self.pad_id,
            temperature=request.temperature,
            prompt_embeddings=self.prompt_embeddings,
            streams=self.streams,
            draws=uniforms(
                request.seed, request.step, rows[:, 0], rows[:, 1], torch.arange(length)
            ),
        )
        return [
            Rollout(
                ids,
                logps,
                torch.full((len(ids),), request.step, dtype=torch.int32),
                bool(ids) and ids[-1] in request.ends,
            )
            for ids, logps in zip(sampled.ids, sampled.logps, strict=True)
        ]

    def release(self) -> None:
        """Frees the memory of a copy, unless it is to be kept."""
        self.twin.release()

    def close(self) -> None:
        """Does nothing: nothing was started."""
