"""The error rule of the benchmarks, for tests."""

from benchmarks.adversarial.tolerances import (
    FLOOR,
    GRADIENT_FACTOR,
    VALUE_FACTOR,
    relative_error,
)

__all__ = ["FLOOR", "GRADIENT_FACTOR", "VALUE_FACTOR", "relative_error"]
