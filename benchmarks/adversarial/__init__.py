"""What users of fused vocabulary losses have run into, as cases that any provider can be put to."""

from . import autograd, invariance, policy, rows, size, values  # noqa: F401  each adds its cases
from .case import CASES, REFUSALS, Case, Failed, said
from .groups import GROUPS, NOT_APPLICABLE

__all__ = ["CASES", "GROUPS", "NOT_APPLICABLE", "REFUSALS", "Case", "Failed", "said"]
