"""vLLM as a rollout engine in this process, by its class ``LLM``.

Prompts may hold vectors, which the routes of a server do not take. Source: ``EmbedsPrompt`` of vLLM
0.32, whose ids and vectors may be mixed; its prefix cache tells prompts apart by both.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from wavalign_fast.errors import UserError, described, one_line
from wavalign_fast.models.prompt_embeddings import EmbeddedBlock, PromptEmbeddings
from wavalign_fast.rollout.token_answers import Choice, EngineError
from wavalign_fast.rollout.vllm import SERVING

T = TypeVar("T")
FOR_VECTORS = {"enable_prompt_embeds": True}
"""Options of an engine whose prompts hold vectors."""


class VLLMInProcess:
    """An ``LLM`` of vLLM in this process, made at the first call of ``load``.

    Args:
        options: arguments of ``LLM`` besides those that token ids and log-probs need.
        timeout_s, start_timeout_s: as for ``VLLMServer``.
    """

    def __init__(
        self, options: Mapping[str, Any], *, timeout_s: float, start_timeout_s: float
    ) -> None:
        self.options = dict(options)
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.vllm = _vllm()
        self.llm: Any = None

    def version(self) -> str:
        """Returns the release of vLLM."""
        return str(self.vllm.__version__)

    def load(self, directory: Path, label: str) -> None:
        """Starts the engine with the weights in ``directory``, or replaces its weights by them.

        Raises:
            EngineError: vLLM failed, or took longer than it may.
        """
        if self.llm is None:
            self.llm = _by_thread(
                lambda: self.vllm.LLM(model=str(directory), **SERVING, **self.options),
                self.start_timeout_s,
                "start",
            )
            _by_thread(lambda: self.llm.update_weight_version(label), self.timeout_s, "version")
            return

        def reload() -> bool:
            # No request runs between two calls of ``generate``, so there is nothing to pause.
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
            self.llm.update_weight_version(label)
            return bool(self.llm.reset_prefix_cache())

        if not _by_thread(reload, self.timeout_s, "update of the weights"):
            raise EngineError("rollout.vllm: vLLM could not empty its prefix cache")

    def generate(self, requests: Sequence[dict[str, Any]]) -> list[list[Choice]]:
        """Samples for all requests in one call of vLLM.

        Args:
            requests: bodies of ``/inference/v1/generate``, or of ``with_vectors``.

        Raises:
            EngineError: vLLM failed, or took longer than ``timeout_s``.
        """
        prompts = [_as_prompt(body) for body in requests]
        params = [self.vllm.SamplingParams(**body["sampling_params"]) for body in requests]
        outputs: list[Any] = _by_thread(
            lambda: self.llm.generate(prompts, params, use_tqdm=False),
            self.timeout_s,
            "completions",
        )
        return [[_as_choice(done) for done in output.outputs] for output in outputs]

    def close(self) -> None:
        """Ends the engine's own process."""
        if self.llm is not None:
            llm, self.llm = self.llm, None
            _by_thread(lambda: llm.llm_engine.engine_core.shutdown(), self.timeout_s, "end")


def with_vectors(
    bodies: Sequence[Mapping[str, Any]], vectors: PromptEmbeddings
) -> list[dict[str, Any]]:
    """Adds to each body the vectors that its ids name.

    Args:
        bodies: as ``AnswerChecks.bodies`` makes them, with ids behind the vocabulary.

    Returns:
        Bodies with ``token_ids`` of the vocabulary, and where a prompt has vectors
        ``prompt_embeds``, [T, H], and ``prompt_is_token_ids``, T bools, false where the vector
        counts.
    """
    found = []
    for body in bodies:
        filled = vectors.fill(torch.tensor([body["token_ids"]]))
        if not isinstance(filled, EmbeddedBlock):
            found.append(dict(body))
            continue
        assert isinstance(filled.block, torch.Tensor)  # as it went in
        length = filled.block.shape[1]
        embeds = filled.vectors.new_zeros(length, filled.vectors.shape[1])
        is_id = torch.ones(length, dtype=torch.bool)
        is_id[filled.places] = False
        found.append(
            dict(body)
            | {
                "token_ids": filled.block[0].tolist(),
                "prompt_embeds": embeds.index_copy(0, filled.places, filled.vectors),
                "prompt_is_token_ids": is_id.tolist(),
            }
        )
    return found


def _as_prompt(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the prompt of a body as ``LLM.generate`` takes it."""
    embeds = ("prompt_embeds", "prompt_is_token_ids")
    given = {key: body[key] for key in embeds if key in body}
    return {"prompt_token_ids": body["token_ids"]} | given


def _vllm() -> ModuleType:
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            f"rollout.engine: vllm without rollout.vllm.url needs the package vllm here: "
            f"{one_line(error)}; wanted the url of a server, or pip install vllm"
        ) from error
    module: ModuleType = vllm
    return module


def _by_thread(call: Callable[[], T], seconds: float, what: str) -> T:
    """Returns ``call()``, or raises if it takes longer: vLLM itself may wait for ever."""
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True, name=f"vLLM {what}")
    thread.start()
    thread.join(seconds)
    if failed:
        raise EngineError(f"rollout.vllm: {what} by vLLM failed: {described(failed[0])}")
    if thread.is_alive():
        raise EngineError(
            f"rollout.vllm: vLLM did not finish its {what} within {seconds:g} s "
            "(rollout.vllm.timeout_s and start_timeout_s)"
        )
    return found[0]


def _as_choice(output: Any) -> Choice:
    """A ``CompletionOutput`` in the form that the route gives it."""
    logps = [
        {"token_id": token, "logprob": entry[token].logprob}
        for token, entry in zip(output.token_ids, output.logprobs or (), strict=True)
    ]
    spans = [
        {"version": span.version, "start": span.start, "end": span.end}
        for span in output.weight_versions or ()
    ]
    return {
        "token_ids": list(output.token_ids),
        "finish_reason": output.finish_reason,
        "logprobs": {"content": logps},
        "weight_versions": spans,
    }
