"""The options of the recipe, ``task.*`` in a config. They are known without importing torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from wavalign_fast.recipes.dialogue import options as dialogue
from wavalign_fast.rewards.judge.options import JudgeOptions

FROM_RUN = {**dialogue.FROM_RUN, "scale": "loss.gate.scale"}
"""What the task takes from other keys of the run's configuration, by the names it has for them."""


def _pairs(ratio: list[int]) -> list[int]:
    """Refuses sizes without a partner; which sizes can be followed, only the family knows."""
    if not ratio or len(ratio) % 2:
        raise ValueError(f"{ratio} given, wanted pairs of a text and a speech size")
    return ratio


Paths = str | Path | list[str | Path]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of ``WavAlign``, each with its description."""

    data: Annotated[
        Paths,
        Field(
            description="Dialogues to train on, in the released schemas: JSONL, a JSON list, or a "
            "`datasets` directory; one or several."
        ),
    ]
    eval_data: Annotated[
        Paths | None,
        Field(description="Held-out dialogues; needed unless train.eval_items is 0."),
    ] = None
    family: Annotated[
        str | None,
        Field(
            description="Family of the model, or a FILE.py of your own with the functions of one. "
            "null: the one that the model directory tells."
        ),
    ] = None
    audio_base: Annotated[
        str | Path | None,
        Field(description="Folder that relative paths of audio start from. null: that of the file"),
    ] = None
    task_types: Annotated[
        list[str] | None,
        Field(
            description="Task types of the dialogues that are used. null: s2s alone; [all]: every "
            "one."
        ),
    ] = None
    system: Annotated[
        str | None,
        Field(description="System text in front of dialogues that have none of their own."),
    ] = None
    prompt_style: Annotated[
        Literal["row", "release"],
        Field(
            description="row: a prompt is the beginning of the row that the anchor learns; release:"
            " as the family's published inference code builds it."
        ),
    ] = "row"
    ratio: Annotated[
        Annotated[list[Annotated[int, Field(ge=1, le=1_000_000)]], AfterValidator(_pairs)] | None,
        Field(
            description="Sizes of the text and speech chunks of answers by turns, the last pair "
            "repeats. null: the family's own."
        ),
    ] = None
    learn_history: Annotated[
        bool,
        Field(description="Whether the anchor learns earlier answers of a dialogue too."),
    ] = True
    codec: Annotated[
        dict[str, Any] | None,
        Field(
            description="Options of the speech codec, e.g. {tokenizer: DIR, decoder: DIR}; its "
            "kind is the family's own unless named; see docs/speech.md. null: no codec, for data "
            "and answers without sound."
        ),
    ] = None
    channel: Annotated[
        Annotated[int, Field(ge=0, le=1000)] | Literal["mean"],
        Field(
            description="Channel of audio with several, from 0, or their mean; of codes too, "
            "unless task.codec.channel says otherwise."
        ),
    ] = "mean"
    cache: Annotated[
        str | Path,
        Field(description="Directory that keeps codes and vectors of clips, for all runs."),
    ] = "audio_cache"
    rewards: Annotated[
        list[dict[str, Any]] | None,
        Field(
            description="Parts of the rewards, each with its kind and weight; see docs/judge.md. "
            "null: the judge alone."
        ),
    ] = None
    judge: Annotated[
        JudgeOptions, Field(description="The judge of spoken answers; see docs/judge.md.")
    ] = JudgeOptions()  # noqa: RUF009
    max_prompt: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Dialogues whose prompt has more ids are left out."),
    ] = 2048
    max_answer: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Dialogues whose answer has more ids are left out."),
    ] = 2048
    boundary_as: Annotated[
        Literal["speech", "text"],
        Field(description="Class of the tokens that begin and end audio."),
    ] = "speech"
    eos_as: Annotated[
        Literal["speech", "text"],
        Field(
            description="Class of the end-of-answer tokens. With speech the anchor alone trains "
            "the end of the answer; the released code has text."
        ),
    ] = "speech"
    eval_temperature: Annotated[
        float,
        Field(
            ge=0.0,
            le=1e4,
            allow_inf_nan=False,
            description="Sampling temperature of evaluations; 0 = greedy, each dialogue once.",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.judge, dict):  # as a config has it
            object.__setattr__(self, "judge", JudgeOptions.model_validate(self.judge))
