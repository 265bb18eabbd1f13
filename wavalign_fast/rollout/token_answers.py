"""Checks what goes to an engine elsewhere and what comes back: ids, log-probs, weight versions."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.errors import UserError, shown
from wavalign_fast.rollout.checks import check_id, check_prompts
from wavalign_fast.rollout.engine import Rollout, RolloutRequest

Choice = Mapping[str, Any]
"""One completion as vLLM's route ``/inference/v1/generate`` describes it."""


LARGEST = 1e-3
"""A log-prob is 0 at most, but for its rounding."""


class EngineError(UserError):
    """The engine is gone, did not answer in time, or gave an answer that cannot be used."""


@dataclass(frozen=True)
class WeightLabels:
    """How the weights of a step are called at the engine.

    A label names the run too: a server that another trainer has given weights must not pass.
    """

    run: str
    """Unlike that of any other run."""

    def of(self, step: int) -> str:
        """The label of the weights sent for ``step``."""
        return f"{self.run}:{step}"

    def step(self, label: Any) -> int | None:
        """The step of a label, ``None`` for one that this run did not give."""
        run, _, step = str(label).rpartition(":")
        return int(step) if run == self.run and step.isdecimal() else None


@dataclass(frozen=True)
class AnswerChecks:
    """What an answer must satisfy."""

    vocabulary: int
    """Rows of the model's embedding."""
    labels: WeightLabels
    max_staleness: int
    """Steps by which the weights that sampled an id may be older than the step."""

    def bodies(
        self, request: RolloutRequest, sampling: Mapping[str, Any], *, vectors: int = 0
    ) -> list[dict[str, Any]]:
        """Returns the body of ``/inference/v1/generate`` for each prompt.

        Ids are checked before they are sent: one beyond the vocabulary ends the whole server.

        Args:
            sampling: further sampling parameters, such as top_p.
            vectors: how many ids behind the vocabulary prompts may hold.

        Raises:
            ValueError: an id without an embedding, or an empty prompt.
        """
        prompts = check_prompts(request.prompt_ids, self.vocabulary, vectors)
        for end in sorted(request.ends):
            check_id("eos_id", end, self.vocabulary)
        params = {
            "n": request.group_size,
            "temperature": request.temperature,
            **sampling,
            "max_tokens": request.max_new_tokens,
            "logprobs": 0,
            "stop_token_ids": sorted(request.ends),
            # Else the id that the model's files call the end would end a completion, too.
            "ignore_eos": True,
            "detokenize": False,
        }
        return [
            {"token_ids": ids, "sampling_params": params | {"seed": _seed(request, place)}}
            for ids, place in zip(prompts, request.places, strict=True)
        ]

    def rollouts(
        self, request: RolloutRequest, answers: Sequence[Sequence[Choice]]
    ) -> list[Rollout]:
        """Returns the B·G completions in the order of the prompts.

        Args:
            answers: the choices of each prompt.

        Raises:
            EngineError: a count, an id, a log-prob or a weight version is not as it must be.
        """
        if len(answers) != len(request.prompt_ids):
            raise EngineError(
                f"rollout.vllm: {len(answers)} answers came for {len(request.prompt_ids)} prompts, "
                "wanted one each"
            )
        found = []
        for place, choices in zip(request.places, answers, strict=True):
            if len(choices) != request.group_size:
                raise EngineError(
                    f"rollout.vllm: prompt {place} of step {request.step}: {len(choices)} "
                    f"completions came, wanted {request.group_size}"
                )
            for g, choice in enumerate(choices):
                what = f"rollout.vllm: completion {g} of prompt {place} of step {request.step}"
                found.append(self._rollout(what, request, choice))
        return found

    def _rollout(self, what: str, request: RolloutRequest, choice: Choice) -> Rollout:
        ids = self._ids(what, request, choice)
        content = (choice.get("logprobs") or {}).get("content") or []
        logps = [entry.get("logprob") for entry in content]
        if [entry.get("token_id") for entry in content] != ids:
            raise EngineError(
                f"{what}: {len(logps)} log-probs came for {len(ids)} ids, or of other ids; wanted "
                "one of each sampled id"
            )
        for logp in logps:
            if not isinstance(logp, int | float) or not math.isfinite(logp) or logp > LARGEST:
                raise EngineError(f"{what}: the log-prob {shown(logp)} came, wanted at most 0")
        ended = ids[-1] in request.ends
        if not ended and len(ids) != request.max_new_tokens:
            raise EngineError(
                f"{what}: {len(ids)} ids came and none ends it (finish_reason "
                f"{shown(choice.get('finish_reason'))}), wanted an end or "
                f"{request.max_new_tokens} ids"
            )
        versions = self._versions(what, request.step, choice, len(ids))
        return Rollout(ids, torch.tensor(logps, dtype=torch.float32), versions, ended)

    def _ids(self, what: str, request: RolloutRequest, choice: Choice) -> list[int]:
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not 1 <= len(ids) <= request.max_new_tokens:
            count = len(ids) if isinstance(ids, list) else shown(ids)
            raise EngineError(
                f"{what}: {count} ids came (finish_reason {shown(choice.get('finish_reason'))}), "
                f"wanted 1 to {request.max_new_tokens}"
            )
        for token in ids:
            if type(token) is not int or not 0 <= token < self.vocabulary:
                raise EngineError(
                    f"{what}: the id {shown(token)} came, wanted 0 <= id < {self.vocabulary}"
                )
        for token in ids[:-1]:
            if token in request.ends:
                raise EngineError(f"{what}: ids came behind the end id {token}, wanted none")
        return ids

    def _versions(self, what: str, step: int, choice: Choice, length: int) -> Tensor:
        """int32 [length], the step of the weights of each id."""
        versions = torch.full((length,), -1, dtype=torch.int32)
        for span in choice.get("weight_versions") or ():
            label = span.get("version")
            sent = self.labels.step(label)
            if sent is None:
                raise EngineError(
                    f"{what} was sampled by the weights {shown(label)}, wanted those of this run "
                    f"({self.labels.of(step)}); does another trainer use this server?"
                )
            if step - sent > self.max_staleness:
                raise EngineError(
                    f"{what} was sampled by the weights of step {sent}, wanted at most "
                    f"{self.max_staleness} steps before (rollout.vllm.max_staleness)"
                )
            versions[span.get("start") : span.get("end")] = sent
        if bool((versions < 0).any()):
            raise EngineError(
                f"{what}: {int((versions < 0).sum())} of {length} ids came without the version of "
                "their weights, wanted weight_versions for all"
            )
        return versions


def _seed(request: RolloutRequest, place: int) -> int:
    """The seed of a prompt's completions; vLLM adds a completion's number to it."""
    source = random.Random(f"rollout:{request.seed}:{request.step}:{place}")
    return source.getrandbits(48)
