"""The rollout engine of a run: the built-in sampler, or vLLM with the weights of all ranks."""

import logging
import shutil
import tempfile
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from wavalign_fast.config.rollout import RolloutConfig, VLLMConfig
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError, user_input
from wavalign_fast.models import PromptEmbeddings
from wavalign_fast.rollout.engine import BuiltinEngine, Rollout, RolloutEngine, RolloutRequest
from wavalign_fast.rollout.token_answers import AnswerChecks, EngineError, WeightLabels
from wavalign_fast.rollout.twin import Twin
from wavalign_fast.rollout.vllm import VLLM, VLLMServer, warn_of_release
from wavalign_fast.rollout.vllm_in_process import FOR_VECTORS, VLLMInProcess, with_vectors
from wavalign_fast.rollout.weight_files import write_model
from wavalign_fast.train.model_setup import sampling_dtype
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.two_streams import streams_of

logger = logging.getLogger(__name__)

TRUNCATING = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
"""Sampling parameters, and the values that leave the model's distribution as it is."""


def rollout_engine(config: RunConfig, task: Task, twin: Twin, ranks: Ranks) -> RolloutEngine:
    """Returns what samples in the run, which nothing has started yet.

    Raises:
        UserError: it cannot be used here, or not for this task.
    """
    vectors = getattr(task, "prompt_embeddings", None)
    if config.rollout.engine == "builtin":
        return BuiltinEngine(twin, task.pad_id, vectors, streams_of(task))
    with ranks.failing_together():
        longest = max((len(example.prompt_ids) for example in task.train_examples), default=1)
        # By itself vLLM computes with float32 weights in a shorter dtype.
        dtype = str(sampling_dtype(config) or config.model.dtype).removeprefix("torch.")
        own: dict[str, Any] = {"max_model_len": longest + config.rollout.max_new_tokens}
        own["dtype"] = dtype
        if vectors is not None and len(vectors):  # a task names them as it reads its prompts
            if config.rollout.vllm.url is not None:
                raise UserError(
                    f"rollout.vllm.url: {config.rollout.vllm.url} given for prompts with vectors "
                    "(continuous audio), which a server does not take; wanted null, for vLLM in "
                    "the trainer's process, or rollout.engine=builtin"
                )
            own |= FOR_VECTORS
        vllm = _vllm_of(config.rollout.vllm, own, ranks)
    return VLLMEngine(config, twin, vllm, ranks, vectors)


def _vllm_of(config: VLLMConfig, own: dict[str, Any], ranks: Ranks) -> VLLM:
    """Returns vLLM with the options ``own``, unless the configuration gives others."""
    timeout_s, start_timeout_s = config.timeout_s, config.start_timeout_s
    options = own | config.options
    if config.url is not None:
        return VLLMServer(
            config.url,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            command=config.command,
            options=options,
        )
    if ranks.world > 1:
        raise UserError(
            f"rollout.vllm.url: null given for {ranks.world} ranks, wanted the address of a server "
            "that all of them ask"
        )
    return VLLMInProcess(options, timeout_s=timeout_s, start_timeout_s=start_timeout_s)


class VLLMEngine:
    """Samples by vLLM: each rank asks for its own prompts, rank 0 writes and loads the weights.

    Args:
        twin: what holds the policy's model; it is not copied for rollouts.
        vllm: what answers.
        vectors: those that prompts name by ids behind the vocabulary, if any do.
    """

    def __init__(
        self,
        config: RunConfig,
        twin: Twin,
        vllm: VLLM,
        ranks: Ranks,
        vectors: PromptEmbeddings | None = None,
    ) -> None:
        self.config = config.rollout.vllm
        self.dtype = sampling_dtype(config)
        self.twin = twin
        self.vllm = vllm
        self.ranks = ranks
        self.vectors = vectors
        self.sampling = {name: getattr(self.config, name) for name in TRUNCATING}
        self.sent: int | None = None  # the step of the last update
        self.checks: AnswerChecks | None = None
        self.directory: Path | None = None  # of the weights, on rank 0

    def set_weights(self, step: int) -> None:
        """Gives vLLM the policy's weights, unless ``update_every`` says that the old ones serve.

        Raises:
            EngineError: vLLM is not ready in time, or does not take the weights.
            UserError: the weights cannot be written.
        """
        if self.sent is not None and step - self.sent < self.config.update_every:
            return
        first = self.checks is None
        if self.checks is None:
            run = self.ranks.on_main(lambda: uuid.uuid4().hex[:8])
            size = self.twin.source.get_input_embeddings().weight.shape[0]
            self.checks = AnswerChecks(size, WeightLabels(run), self.config.max_staleness)
        label = self.checks.labels.of(step)
        with self.ranks.failing_together():
            new = self._new_directory(step) if self.ranks.is_main else None
        # It gathers, but raises only after the last gather.
        with self.ranks.failing_together(), user_input("rollout.vllm.weights_dir"):
            write_model(self.twin.source, new, dtype=self.dtype, root=self.twin.root)
        self.ranks.on_main(partial(self._load, new, label))
        if first:
            self.ranks.on_main(self._warn)
        self.sent = step

    def _warn(self) -> None:
        """Warns once of what makes log-probs differ, and of an untested release."""
        warn_of_release(self.vllm.version())
        for name, plain in TRUNCATING.items():
            if self.sampling[name] != plain:
                logger.warning(
                    "rollout.vllm.%s: %g given; vLLM's log-probs are then those of another "
                    "distribution than the trainer's, wanted %g",
                    name,
                    self.sampling[name],
                    plain,
                )

    def _new_directory(self, step: int) -> Path:
        with user_input("rollout.vllm.weights_dir"):
            if self.config.weights_dir is None:
                return Path(tempfile.mkdtemp(prefix=f"wavalign-step-{step}-"))
            parent = Path(self.config.weights_dir).expanduser()
            parent.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"step-{step}-", dir=parent)).absolute()

    def _load(self, new: Path | None, label: str) -> None:
        assert new is not None  # on rank 0
        new.chmod(0o755)  # the server may be another user's
        try:
            self.vllm.load(new, label)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        self._forget_files()
        self.directory = new

    def _forget_files(self) -> None:
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def sample(self, request: RolloutRequest) -> list[Rollout]:
        """Returns the completions of this rank's prompts, whose order vLLM may choose.

        Raises:
            EngineError: vLLM fails, is late, or gives an answer that cannot be used.
        """
        assert self.checks is not None
        with user_input("rollout.vllm"):
            vectors = 0 if self.vectors is None else len(self.vectors)
            bodies = self.checks.bodies(request, self.sampling, vectors=vectors)
            if self.vectors is not None:
                bodies = with_vectors(bodies, self.vectors)
        answers = self.vllm.generate(bodies)
        return self.checks.rollouts(request, answers)

    def release(self) -> None:
        """Does nothing: the weights that sample are in another process."""

    def close(self) -> None:
        """Removes the weights' files, and ends vLLM if it was started here."""
        self.sent, self.checks = None, None
        if self.ranks.is_main:
            try:
                self.vllm.close()
            except EngineError as error:  # the run is over; what it has done must not be lost
                logger.warning("%s", error)
            self._forget_files()


def check_logp_diff(metrics: dict[str, float], config: RolloutConfig) -> None:
    """Raises ``UserError`` where vLLM and the trainer disagree by more than the configuration says.

    Args:
        metrics: of a step, with ``logp_diff/…_mean`` by modality.
    """
    limit = config.vllm.max_logp_diff
    for name in ("text", "speech"):
        seen = metrics.get(f"logp_diff/{name}_mean", 0.0)
        if config.engine == "vllm" and seen > limit:
            raise UserError(
                f"|Δ log p| of {name} tokens between vLLM and the trainer is {seen:.3g} in the "
                f"mean, wanted at most {limit:g} (rollout.vllm.max_logp_diff); the server may "
                "compute in another dtype, or give raw log-probs (--logprobs-mode "
                "processed_logprobs)"
            )
