"""Random numbers as a function of (seed, step, prompt, rollout, token), by Philox4x32-10.

The generator has no state: a number depends on its counter and the key alone. So a completion's
numbers do not depend on the batch around it, the rank it is on or the number of ranks, and a
checkpoint has no random state to save. Philox uses integers only, which wrap alike on every device.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011 (Random123).
"""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns Philox4x32-10 of four counter words, int64 tensors that broadcast, and two key words.

    Each word is a number of 32 bits, 0 to 2^32 - 1, in an int64.
    """
    a, b, c, d = counter
    for turn in range(ROUNDS):
        k0, k1 = ((word + turn * step) & WORD for word, step in zip(key, KEY_STEPS, strict=True))
        # The product of two 32-bit words wraps in int64, but its 64 bits are right. The shift
        # copies the sign bit, and the mask removes those copies.
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            ((right >> 32) & WORD) ^ b ^ k0,
            right & WORD,
            ((left >> 32) & WORD) ^ d ^ k1,
            left & WORD,
        )
    return a, b, c, d


def uniforms(seed: int, step: int, prompt: Tensor, rollout: Tensor, tokens: Tensor) -> Tensor:
    """Returns uniform numbers in [0, 1), float64 [N, T] of 53 bits, on the device of ``prompt``.

    Number (n, t) is for token ``tokens[t]`` of rollout ``rollout[n]`` of prompt ``prompt[n]`` of
    this step. It has the same bits in whatever table it is asked for.

    Args:
        seed: the run's seed, any whole number; its lowest 64 bits are the key.
        step: the training step, 0 to 2^32 - 1.
        prompt: int64 [N], the prompt's index in the step, 0 to 2^32 - 1.
        rollout: int64 [N], the completion's index in the prompt's group, 0 to 2^32 - 1.
        tokens: int64 [T], places in the completion, 0 to 2^32 - 1.

    Raises:
        ValueError: an index is out of range, or ``prompt`` and ``rollout`` differ in length.
    """
    if prompt.shape != rollout.shape or prompt.ndim != 1 or tokens.ndim != 1:
        shapes = [list(index.shape) for index in (prompt, rollout, tokens)]
        raise ValueError(
            f"prompt, rollout and tokens have the shapes {shapes}, wanted [N], [N] and [T]"
        )
    if not 0 <= step <= WORD:
        raise ValueError(f"step is {step}, wanted 0 <= step < 2^32")
    for name, index in (("prompt", prompt), ("rollout", rollout), ("tokens", tokens)):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) <= WORD:
            seen = [int(index.min()), int(index.max())]
            raise ValueError(f"{name} has indices from {seen[0]} to {seen[1]}, wanted 0 to 2^32-1")
    counter = (
        tokens[None, :],
        rollout[:, None],
        prompt[:, None],
        torch.full_like(rollout, step)[:, None],
    )
    high, low, *_ = philox(counter, (seed & WORD, seed >> 32 & WORD))
    return ((high >> 5) * 2**26 + (low >> 6)).double() * 2.0**-53
