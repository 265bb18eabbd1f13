"""The options of the recipe, ``task.*`` of a config: known without importing torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

ASSETS = Path(__file__).parent / "assets"
"""The files that ship with the recipe."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``SpokenSums`` takes, each with its text."""

    train_path: Annotated[
        str | Path | None,
        Field(
            description="JSONL of problems to train on; the built-in 610 without it. Evaluation is "
            "on the built-in 200 held-out sums either way."
        ),
    ] = None
    demonstrations: Annotated[
        Literal["imperfect", "gold"],
        Field(
            description="imperfect: two in five give a random answer, spoken as written; gold: all "
            "are right."
        ),
    ] = "imperfect"
    eos_as: Annotated[
        Literal["speech", "text"],
        Field(
            description="Which class the end of the answer belongs to, and so which loss owns it."
        ),
    ] = "speech"
    asr_reward: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            allow_inf_nan=False,
            description="Share of the reward that needs the right sum to be heard; the rest needs "
            "it written.",
        ),
    ] = 0.0
    judge_workers: Annotated[
        int, Field(ge=1, le=64, description="Processes of the speech recogniser.")
    ] = 2
    assets: Annotated[
        str | Path,
        Field(description="Directory of `build-recipe`; the shipped one by default."),
    ] = ASSETS
