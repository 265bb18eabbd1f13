"""The group ``rollout``: how completions are sampled, and by what."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from wavalign_fast.config.group import (
    MOST_IDS,
    MOST_TOKENS,
    AtLeastOne,
    AtLeastOneRow,
    Count,
    Group,
    Positive,
)
from wavalign_fast.config.parallel import LONGEST_WAIT_S

VLLM_COLDEST = 0.01
"""vLLM raises a lower temperature to this one."""
Seconds = Annotated[float, Field(gt=0.0, le=LONGEST_WAIT_S, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]


class VLLMConfig(Group):
    """vLLM as the sampler, for ``rollout.engine: vllm``."""

    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+$")] | None = None
    """Address of a running server, such as http://127.0.0.1:8000. null: vLLM runs in this process,
    which must be the only rank."""
    command: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Command that starts the server at ``url``, such as [vllm, serve], and is ended with the run;
    the model's directory and the flags that are needed are added. By default it is running."""
    options: dict[str, bool | int | float | str | dict[str, Any] | None] = Field(default={})
    """Arguments of vLLM's ``LLM`` in this process, such as gpu_memory_utilization, or as flags
    those of ``command``."""
    weights_dir: Annotated[str, Field(min_length=1)] | None = None
    """Directory that rank 0 and the server share, for the weights of an update; by default one in
    the directory for temporary files. It needs room for two copies of the model."""
    update_every: AtLeastOne = 1
    """Steps from one update of the server's weights to the next."""
    max_staleness: Count = 0
    """Steps by which the weights that sampled an id may be older than the step; older ones end the
    run. Above 0 the ids are weighed by loss.importance_cap."""
    max_logp_diff: Positive = 0.1
    """Largest mean |Δ log p| between vLLM and the trainer, of text and of speech; above it the run
    ends. Engines in bfloat16 differ by about 0.01."""
    top_p: Share = 1.0
    """Below 1 the log-probs are those of a truncated distribution, which is not the trainer's."""
    top_k: Count = 0
    """Above 0 likewise."""
    repetition_penalty: Positive = 1.0
    """Another value than 1 likewise."""
    timeout_s: Seconds = 600.0
    """Seconds that the completions of a step, or an update of the weights, may take."""
    start_timeout_s: Seconds = 1800.0
    """Seconds that vLLM may take until it is ready."""

    @model_validator(mode="after")
    def _stale_ids_are_taken(self) -> Self:
        if self.update_every > self.max_staleness + 1:
            raise ValueError(
                f"update_every {self.update_every} given with max_staleness {self.max_staleness}, "
                f"wanted a max_staleness of {self.update_every - 1} or more"
            )
        return self

    @model_validator(mode="after")
    def _options_have_a_reader(self) -> Self:
        if self.command and self.url is None:
            raise ValueError("command given without a url, wanted the address for its server")
        if self.url is not None and self.options and not self.command:
            raise ValueError(
                f"options {', '.join(self.options)} given with a url, wanted a command that they "
                "are for, or them at the start of that server"
            )
        if self.url is None and self.weights_dir is not None:
            raise ValueError("weights_dir given without a url, wanted both")
        return self


class RolloutConfig(Group):
    """How completions are sampled. Skipped when no term of the loss needs completions."""

    engine: Literal["builtin", "vllm"] = "builtin"
    """The sampler of this package, or vLLM by ``rollout.vllm``."""
    vllm: VLLMConfig = VLLMConfig()
    """vLLM as the sampler."""
    prompts: AtLeastOneRow = 8
    """Prompts per step."""
    group_size: AtLeastOneRow = 8
    """Completions per prompt. The advantage compares them, so a group of 1 teaches nothing."""
    temperature: Annotated[float, Field(ge=1e-4, le=1e4, allow_inf_nan=False)] = 1.0
    """Sampling temperature, also applied to the log-probs of the policy loss."""
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 72
    """Maximum length of a completion, including the end-of-sequence token."""
    dtype: Literal["same", "float32", "bfloat16"] = "same"
    """Dtype of the weights that sample, by default that of the forward pass in training. Another
    dtype than that of the stored weights takes a copy of them."""
    keep_copy: bool = False
    """Keep the memory of the whole copy that samples for a sharded model, or for one that computes
    in another dtype. false: it is freed before the backward pass and sent again for each step."""

    @model_validator(mode="after")
    def _ids_fit_into_memory(self) -> Self:
        ids = self.prompts * self.group_size * self.max_new_tokens
        if ids > MOST_IDS:
            raise ValueError(
                f"prompts {self.prompts} × group_size {self.group_size} × max_new_tokens "
                f"{self.max_new_tokens} is {ids} ids a step, wanted at most {MOST_IDS}"
            )
        return self

    @model_validator(mode="after")
    def _suits_the_engine(self) -> Self:
        keys = VLLMConfig.model_fields.items()
        given = [name for name, key in keys if getattr(self.vllm, name) != key.default]
        if self.engine == "builtin" and given:
            raise ValueError(f"vllm.{given[0]} given with engine builtin, wanted engine vllm")
        if self.engine == "vllm" and self.temperature < VLLM_COLDEST:
            raise ValueError(
                f"temperature {self.temperature:g} given with engine vllm, wanted at least "
                f"{VLLM_COLDEST}, to which vLLM raises it"
            )
        return self
