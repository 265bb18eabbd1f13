"""csrc/cuda/token_math.h compared with the definition, in float and in double."""

import itertools
import math

import pytest
import torch

from wavalign_fast.ops.token_math import TokenTable, token_gradient

from .kernels import Kernels, TokenParams

NAMES = ("policy_coef", "advantage", "kl_coef", "anchor_coef", "old_logp", "ref_logp")


def tokens() -> tuple[torch.Tensor, TokenTable]:
    """Every combination of ratio, sign, gap and coefficients that takes a different branch."""
    ratios = (-30.0, -0.3, 0.0, 1e-3, 0.2, 0.3, 19.5, 20.0, 20.5, 60.0, math.nan)
    gaps = (-40.0, -1e-4, 0.0, 1e-4, 2.0, 19.5, 25.0, math.nan)
    advantages = (-1.5, 0.0, 0.7)
    coefficients = ((1.0, 0.0), (0.5, 0.3), (0.0, 0.3), (0.0, 0.0))
    rows = list(itertools.product(ratios, gaps, advantages, coefficients))
    excess, gap, advantage, both = zip(*rows, strict=True)
    policy, kl = torch.tensor(both).T
    logp = torch.full((len(rows),), -5.0)
    table = TokenTable(
        policy_coef=policy,
        advantage=torch.tensor(advantage),
        kl_coef=kl,
        anchor_coef=torch.arange(len(rows)) % 3 * 0.25,
        old_logp=logp - torch.tensor(excess),
        ref_logp=logp + torch.tensor(gap),
    )
    logp[5] = math.nan
    return logp.double(), TokenTable(*(column.double() for column in table))


def gradients(
    kernels: Kernels,
    name: str,
    logp: torch.Tensor,
    table: TokenTable,
    clip: tuple[float, float] | None,
) -> torch.Tensor:
    low, high = clip or (-math.inf, math.inf)
    params = TokenParams(
        count=len(logp),
        clip_low=low,
        clip_high=high,
        has_old=table.old_logp is not None,
        has_ref=table.ref_logp is not None,
    )
    given = (getattr(table, column) for column in NAMES)
    filled = [torch.zeros_like(logp) if column is None else column for column in given]
    columns = torch.stack([logp, *filled, torch.zeros_like(logp)])
    entry = f"token_gradients_in_{name}"
    return kernels.launch("row_stats", entry, params, {"columns": columns}).buffers["columns"][-1]


@pytest.mark.parametrize("clip", [None, (0.8, 1.25)])
@pytest.mark.parametrize("absent", [(), ("old_logp",), ("ref_logp",)])
@pytest.mark.parametrize(("name", "rtol"), [("float", 1e-5), ("double", 1e-14)])
def test_gradient_by_the_log_prob(
    kernels: Kernels,
    name: str,
    rtol: float,
    absent: tuple[str, ...],
    clip: tuple[float, float] | None,
) -> None:
    logp, table = tokens()
    given = table._replace(**dict.fromkeys(absent))
    found = gradients(kernels, name, logp, given, clip)
    torch.testing.assert_close(
        found, token_gradient(logp, given, clip), rtol=rtol, atol=rtol, equal_nan=True
    )


def test_ratios_grow_beyond_20_nats(kernels: Kernels) -> None:
    # The only bound in that range: below it nothing is clipped, above it everything is.
    logp, one = torch.full((2,), -1.0).double(), torch.ones(2).double()
    table = TokenTable(one, one, 0 * one, 0 * one, old_logp=logp - torch.tensor([20.5, 23.0]))
    bound = (0.0, 2 * math.exp(20.0))
    assert token_gradient(logp, table, bound).tolist() == [-math.exp(20.0), 0.0]
    found = gradients(kernels, "double", logp, table, bound)
    torch.testing.assert_close(found, token_gradient(logp, table, bound))
