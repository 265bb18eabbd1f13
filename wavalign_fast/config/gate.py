"""The keys of the gate, which works on the scale of the rewards."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from wavalign_fast.config.group import LARGEST, AsTuple, Fraction, Group, Positive, Weight

Reward = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]

SLOPE_OF_SCALE = 20.0
"""Slope times the width of the scale: 5 on rewards from 1 to 5."""


def gate_of_scale(low: float, high: float) -> dict[str, float]:
    """Returns the gate's settings for rewards from ``low`` to ``high``.

    ``threshold`` is their middle, ``variance_scale`` their largest variance, that of halves at
    either end; ``slope`` makes the sigmoid as wide a part of the scale as 5 is on 1 to 5.
    """
    width = high - low
    return {
        "slope": SLOPE_OF_SCALE / width,
        "threshold": (low + high) / 2,
        "variance_scale": width**2 / 4,
    }


class GateConfig(Group):
    """Adaptive λ: the EMA of λ_max · σ(slope·(max R − threshold)) · Var(R)/variance_scale."""

    lambda_max: Fraction = 0.8
    """Upper limit of λ, the weight of the policy term."""
    ema: Fraction = 0.9
    """Decay of the moving average: the share of the previous λ in the next one."""
    scale: Annotated[tuple[Reward, Reward], AsTuple] = (1.0, 5.0)
    """Lowest and highest reward in training. Gives the next three keys, unless they are given."""
    slope: Weight = 5.0
    """Steepness of the sigmoid over a group's best reward: 20 / width of the scale."""
    threshold: Reward = 3.0
    """Best reward of a group at which the sigmoid is 1/2: the middle of the scale."""
    variance_scale: Positive = 4.0
    """Reward variance at which the gate is fully open: the largest on the scale."""

    @field_validator("scale")
    @classmethod
    def _is_a_scale(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] < scale[1]:
            raise ValueError(f"{list(scale)} given, wanted [lowest, highest]")
        return scale

    @model_validator(mode="before")
    @classmethod
    def _follow_the_scale(cls, given: Any) -> Any:
        scale = given.get("scale") if isinstance(given, Mapping) else None
        if not isinstance(scale, list | tuple) or len(scale) != 2:
            return given  # what is wrong with a scale is said when its own key is read
        low, high = scale
        if not all(type(bound) in (int, float) for bound in scale) or not low < high:
            return given
        return gate_of_scale(low, high) | dict(given) if high - low <= 2 * LARGEST else given
