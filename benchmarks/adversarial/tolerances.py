"""Error limits, as multiples of plain torch's error in the same dtype."""

import torch


def relative_error(value: torch.Tensor, truth: torch.Tensor, *, at_least: float = 0.0) -> float:
    """Largest absolute error over the largest true magnitude or ``at_least``, if that is more."""
    if truth.numel() == 0:
        return 0.0
    scale = max(truth.abs().max().item(), at_least) or 1.0
    return (value.double() - truth.double()).abs().max().item() / scale


VALUE_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
# Below these the rule would compare two roundings of the same number.
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}
