"""How close a backend must come to the float64 definition."""

import torch

from wavalign_fast.ops.chunked.interface import RowStats

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-22}


def promised(logits: torch.Tensor) -> torch.Tensor:
    """The error allowed in a log-prob, by row: 1e-5 and the fp32 rounding of the largest logit."""
    return 1e-5 + 3e-7 * logits.double().nan_to_num().abs().amax(dim=1)


def check_stats(found: RowStats, truth: RowStats, logits: torch.Tensor) -> None:
    for name, value in found._asdict().items():
        wanted = getattr(truth, name)
        assert torch.equal(value.isnan(), wanted.isnan()), f"{name}: got {value}, want {wanted}"
        error = (value.double() - wanted).abs().nan_to_num()
        assert (error <= promised(logits)).all(), f"{name}: off by {error}"
    assert (found.logp.nan_to_num() <= 0).all()
    assert (found.entropy.nan_to_num() >= 0).all()


def check_rows(
    found: torch.Tensor, truth: torch.Tensor, logits: torch.Tensor, derivative: torch.Tensor
) -> None:
    """Gradients, element by element: within the rounding of their type, and within the log-prob's
    error times the loss's derivative by it.

    Args:
        found: [R, V], from a kernel.
        truth: the same in float64.
        logits: [R, V], before the gradient was written.
        derivative: [R] by the rows' log-probs and the like, in float64.
    """
    truth = truth.to(found.dtype).double()  # an overflow is infinite
    assert torch.equal(found.isnan(), truth.isnan())
    value, wanted = found.double().nan_to_num(), truth.nan_to_num()
    smallest = torch.finfo(found.dtype).smallest_normal
    if logits.shape[1] > 1:  # with one id, p is 1 only as exactly as its logarithm is 0
        assert (value[wanted == 0].abs() <= smallest).all(), "a gradient where p is 0"
    slack = 8 * (promised(logits) * derivative.abs().nan_to_num())[:, None]
    allowed = ROUNDING[found.dtype] * wanted.abs() + slack + smallest
    error = (value - wanted).abs()
    assert (error <= allowed).all(), f"off by {(error / allowed).max():.1f} times what is allowed"
    assert not found[derivative == 0].any(), "a row without a derivative is not all zeros"
