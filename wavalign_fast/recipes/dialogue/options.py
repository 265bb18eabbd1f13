"""The options of the recipe, ``task.*`` in a config. They are known without importing torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

FROM_RUN = {
    "model_path": "model.path",
    "prompts": "rollout.prompts",
    "group_size": "rollout.group_size",
    "max_new_tokens": "rollout.max_new_tokens",
    "needs_rewards": "needs_rewards",
    "needs_anchor": "needs_anchor",
    "eval_items": "train.eval_items",
    "timeout_s": "parallel.timeout_s",
}
"""What the task takes from other keys of the run's configuration, by the names it has for them."""

TOKENIZER, NO_TEMPLATE = "tokenizer", "none"

Finite = Annotated[float, Field(allow_inf_nan=False)]


def _as_tuple(value: Any) -> Any:
    """Turns a list into a tuple: YAML has only lists, and strict validation wants a tuple."""
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of ``Dialogue``, each with its description."""

    data: Annotated[
        str | Path,
        Field(
            description="JSONL file to train on. A record has prompt, messages or prompt_ids; "
            "answer or answer_ids for the anchor; reference for the reward; rejected or "
            "rejected_ids, a worse answer, for DPO."
        ),
    ]
    eval_data: Annotated[
        str | Path | None,
        Field(description="JSONL file of held-out records; needed unless train.eval_items is 0."),
    ] = None
    reward: Annotated[
        str | None,
        Field(
            description="Reward function, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION. It gets a "
            "list of answers and returns one number each, None for a missing one."
        ),
    ] = None
    reward_arguments: Annotated[
        dict[str, Any] | None,
        Field(description="Further arguments of the reward function, by name."),
    ] = None
    reward_range: Annotated[
        tuple[Finite, Finite] | None,
        BeforeValidator(_as_tuple),
        Field(
            description="Lowest and highest reward of the function. Training maps them to 1 and 5, "
            "where the gate of λ works. null: rewards are used as they are; then set loss.gate.*.",
        ),
    ] = (1.0, 5.0)
    reward_timeout_s: Annotated[
        float,
        Field(
            gt=0.0,
            le=1e6,
            allow_inf_nan=False,
            description="Seconds that one call of the reward function may take.",
        ),
    ] = 300.0
    on_reward_error: Annotated[
        Literal["stop", "missing"],
        Field(
            description="When the reward function fails or takes too long: stop the run, or go on "
            "without the rewards of that call. Five such calls in a row stop the run."
        ),
    ] = "stop"
    on_bad_record: Annotated[
        Literal["stop", "skip"],
        Field(description="Stop at a record that cannot be used, or skip it and say how many."),
    ] = "stop"
    keys: Annotated[
        dict[str, str] | None,
        Field(
            description="Names that your records have for prompt, answer, reference and so on, "
            "e.g. {prompt: question}."
        ),
    ] = None
    system: Annotated[
        str | None,
        Field(description="System message in front of conversations that have none of their own."),
    ] = None
    chat_template: Annotated[
        str,
        Field(
            description="tokenizer: the template of the model directory; none: prompts are used as "
            "they are; or a Jinja file."
        ),
    ] = TOKENIZER
    max_prompt: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Records whose prompt has more ids are left out."),
    ] = 1024
    max_answer: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Records whose answer has more ids are left out."),
    ] = 2048
    speech: Annotated[
        str | list[list[int]],
        Field(
            description="Speech ids: the tokenizer's speech token of number 0, from which on all "
            "ids are speech; or ranges of ids, [[first, end], ...]. []: no speech."
        ),
    ] = "<|audio_0|>"
    boundary: Annotated[
        list[int | str] | None,
        Field(
            description="Tokens or ids that begin and end audio; by default <|begin_of_audio|> and "
            "<|end_of_audio|> if the tokenizer has them."
        ),
    ] = None
    boundary_as: Annotated[
        Literal["speech", "text"], Field(description="Class of the boundary tokens.")
    ] = "speech"
    eos: Annotated[
        list[int | str] | None,
        Field(
            description="Tokens or ids that end an answer; by default those of the model directory."
        ),
    ] = None
    eos_as: Annotated[
        Literal["speech", "text"],
        Field(
            description="Class of the end-of-answer tokens, which decides the losses that train "
            "them. With speech the anchor alone trains the end of the answer."
        ),
    ] = "speech"
    eval_temperature: Annotated[
        float,
        Field(
            ge=0.0,
            le=1e4,
            allow_inf_nan=False,
            description="Sampling temperature of evaluations; 0 = greedy, each record once.",
        ),
    ] = 1.0
