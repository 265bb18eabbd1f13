"""Problems that users of fused vocabulary losses have reported, as cases for any provider."""

from . import (  # noqa: F401  each adds its cases
    autograd,
    invariance,
    policy,
    properties,
    rows,
    size,
    values,
)
from .case import REFUSALS, Case, Failed, added, error_line
from .groups import GROUPS, NOT_APPLICABLE

CASES: tuple[Case, ...] = tuple(sorted(added, key=lambda case: case.items))

__all__ = ["CASES", "GROUPS", "NOT_APPLICABLE", "REFUSALS", "Case", "Failed", "error_line"]
