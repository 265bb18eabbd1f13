"""Stands in for liger-kernel: its functions in plain torch, counted, where there is no GPU."""

import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
from torch import Tensor

from wavalign_fast.models import liger

FUNCTIONS = "liger_kernel.transformers.functional"


def stand_in(monkeypatch) -> Counter:
    """Puts it in the place of the package until the test ends; returns how often each was called.

    Each computes what transformers' modules compute.
    """
    calls: Counter = Counter()

    def liger_rms_norm(X: Tensor, W: Tensor, eps: float, *, in_place: bool) -> Tensor:
        assert not in_place  # the gradient of the last norm's output belongs to the loss
        calls["norm"] += 1
        values = X.to(torch.float32)
        values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
        return W * values.to(X.dtype)

    def liger_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        calls["rope"] += 1
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

        def turned(x: Tensor) -> Tensor:
            half = x.shape[-1] // 2
            left, right = x[..., :half], x[..., half:]
            return x * cos + torch.cat((-right, left), dim=-1) * sin

        return turned(q), turned(k)

    def liger_swiglu(a: Tensor, b: Tensor) -> Tensor:
        calls["swiglu"] += 1
        return torch.nn.functional.silu(a) * b

    for name in ("liger_kernel", "liger_kernel.transformers", FUNCTIONS):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    for function in (liger_rms_norm, liger_rope, liger_swiglu):
        setattr(sys.modules[FUNCTIONS], function.__name__, function)
    monkeypatch.setattr(liger, "backend_status", lambda: {"triton": None})
    return calls
