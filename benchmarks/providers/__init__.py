"""How to call every implementation that the benchmarks and the adversarial suite compare."""

import importlib.metadata
from collections.abc import Iterable
from typing import NamedTuple

import torch

from . import rivals
from .base import (
    IGNORE_INDEX,
    Calls,
    Provider,
    Unsupported,
    dpo_from,
    group_advantages,
    grpo_from,
)
from .ours import ours

__all__ = [
    "IGNORE_INDEX",
    "PROVIDERS",
    "Calls",
    "Loaded",
    "Provider",
    "Unsupported",
    "available",
    "dpo_from",
    "group_advantages",
    "grpo_from",
    "version",
]


class Loaded(NamedTuple):
    provider: Provider
    calls: Calls | None
    reason: str | None
    """Why ``calls`` is ``None``."""


LIGER = "liger-kernel==0.8.5"
PROVIDERS: tuple[Provider, ...] = tuple(
    Provider(name=name, label=label, runs=runs, requirement=requirement, load=load)
    for name, label, runs, requirement, load in (
        ("ours-cpu", "wavalign_fast", "C++ kernels", None, lambda: ours("cpu")),
        ("ours-reference", "wavalign_fast, reference", "the definition in plain torch, fp32 "
         "products and full logits", None, lambda: ours("reference")),
        ("torch", "PyTorch, full logits", "eager", None, lambda: rivals.TORCH),
        ("torch-compile", "PyTorch, full logits, compiled", "inductor", None, rivals.torch_compile),
        ("torch-lce", "torch F.linear_cross_entropy", "row chunks of 256", None, rivals.torch_lce),
        ("trl", "TRL ChunkedLogProbFunction", "its torch path, as wherever Triton is not",
         "trl==1.16.0", rivals.trl),
        ("verl", "verl FusedLinearForPPO", "its torch backend; the Triton kernel wants a GPU",
         "verl==0.9.1", rivals.verl),
        ("liger-selective", "Liger chunked GRPO and DPO", "torch, compiled=False", LIGER,
         rivals.liger_selective),
        ("liger-scaled", "Liger fused linear scaled CE", "its fallback; the CuTe kernels want a "
         "GPU", LIGER, rivals.liger_scaled),
        ("cce", "Cut Cross-Entropy, torch_compile", "inductor over full logits; the Triton "
         "kernels want a GPU", "cut-cross-entropy==25.1.1", rivals.cce),
    )
)  # fmt: skip


def available(names: Iterable[str] | None = None) -> list[Loaded]:
    """The providers of these names (all of them by default), loaded or with the reason why not.

    Raises:
        ValueError: a name that is none of ``PROVIDERS``.
    """
    known = {provider.name: provider for provider in PROVIDERS}
    wanted = list(known if names is None else names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"provider: got {unknown[0]!r}, want one of {', '.join(known)}")
    return [_load(known[name]) for name in wanted]


def _load(provider: Provider) -> Loaded:
    try:
        return Loaded(provider, provider.load(), None)
    except (ImportError, RuntimeError) as error:
        return Loaded(provider, None, str(error))


def version(provider: Provider) -> str | None:
    """The installed version; ``None`` where nothing of that name is installed."""
    if provider.requirement is not None:
        name = provider.requirement.partition("==")[0]
    elif provider.name.startswith("ours"):
        name = "wavalign-fast"
    else:
        return str(torch.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
