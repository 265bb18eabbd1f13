"""Which part of a collective's time is hidden behind computation, from a profiler's trace."""

from collections.abc import Callable, Sequence

import torch

Interval = tuple[float, float]


def hidden_share(one: Interval, others: Sequence[Interval]) -> float:
    """Returns the share of the interval ``one`` that the ``others`` cover together."""
    start, end = one
    covered, at = 0.0, start
    for left, right in sorted(others):
        left, right = max(left, at), min(right, end)
        if right > left:
            covered += right - left
            at = right
    return covered / (end - start)


def gathers_hidden(run: Callable[[], None], *, steps: int) -> list[float]:
    """Runs ``steps`` steps; returns for each the hidden share of the head's all-gather.

    The two longest gathers are those of the embedding, which nothing can hide because it is used
    first, and of the head.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    shares = []
    for _ in range(steps):
        with torch.profiler.profile(activities=activities) as profile:
            run()
            torch.cuda.synchronize()
        gathers, kernels = [], []
        for event in profile.events():
            if event.device_type != torch.autograd.DeviceType.CUDA:
                continue
            span = (event.time_range.start, event.time_range.end)
            if "AllGather" in event.name:
                gathers.append(span)
            elif "nccl" not in event.name and not event.name.startswith(("Mem", "nccl:")):
                kernels.append(span)
        longest = sorted(gathers, key=lambda span: span[1] - span[0])[-2:]
        shares.append(hidden_share(max(longest), kernels))
    return shares
