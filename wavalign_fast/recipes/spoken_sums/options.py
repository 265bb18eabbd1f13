"""The options of the recipe, ``task.*`` in a config. They are known without importing torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

ASSETS = Path(__file__).parent / "assets"
"""The files that ship with the recipe."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of ``SpokenSums``, each with its description."""

    train_path: Annotated[
        str | Path | None,
        Field(
            description="JSONL file of problems to train on, by default the 610 built-in ones. The "
            "evaluation always uses the 200 built-in held-out sums."
        ),
    ] = None
    demonstrations: Annotated[
        Literal["imperfect", "gold"],
        Field(
            description="imperfect: two in five have a random answer, spoken as written; gold: all "
            "answers are right."
        ),
    ] = "imperfect"
    eos_as: Annotated[
        Literal["speech", "text"],
        Field(
            description="Class of the end-of-answer token, which decides the losses that train it."
        ),
    ] = "speech"
    asr_reward: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            allow_inf_nan=False,
            description="Share of the reward for the right sum in the speech; the rest is for the "
            "right sum in the text.",
        ),
    ] = 0.0
    judge_workers: Annotated[
        int, Field(ge=1, le=64, description="Number of processes for speech recognition.")
    ] = 2
    assets: Annotated[
        str | Path,
        Field(description="Directory made by `build-recipe`; by default the shipped one."),
    ] = ASSETS
