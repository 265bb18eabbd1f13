"""How to call every implementation that the benchmarks and the adversarial suite compare."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from ..record import installed_version
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
    "named",
    "version",
]


class Loaded(NamedTuple):
    provider: Provider
    calls: Calls | None
    reason: str | None
    """Why ``calls`` is ``None``."""


LIGER, CCE, VERL = "liger-kernel==0.8.5", "cut-cross-entropy==25.1.1", "verl==0.9.1"
PROVIDERS: tuple[Provider, ...] = tuple(
    Provider(name=name, device=device, label=label, runs=runs, requirement=requirement, load=load)
    for name, device, label, runs, requirement, load in (
        ("ours-cpu", "cpu", "wavalign_fast", "C++ kernels", None, lambda: ours("cpu")),
        ("ours-cuda", "cuda", "wavalign_fast, CUDA", "CUDA row kernels between the library's "
         "products", None, lambda: ours("cuda")),
        ("ours-triton", "cuda", "wavalign_fast, Triton", "Triton row kernels between the library's "
         "products", None, lambda: ours("triton")),
        ("ours-reference", None, "wavalign_fast, reference", "the definition in plain torch, fp32 "
         "products and full logits", None, lambda: ours("reference")),
        ("torch", None, "PyTorch, full logits", "eager", None, lambda: rivals.TORCH),
        ("torch-compile", None, "PyTorch, full logits, compiled", "inductor", None,
         rivals.torch_compile),
        ("torch-lce", None, "torch F.linear_cross_entropy", "row chunks of 256", None,
         rivals.torch_lce),
        ("trl", None, "TRL ChunkedLogProbFunction", "its Triton kernels on a GPU, elsewhere its "
         "torch path", "trl==1.16.0", rivals.trl),
        ("verl", None, "verl FusedLinearForPPO", "its torch backend", VERL, rivals.verl),
        ("verl-triton", "cuda", "verl linear_cross_entropy", "its Triton kernels", VERL,
         rivals.verl_triton),
        ("liger-selective", None, "Liger chunked GRPO and DPO", "torch, compiled=False", LIGER,
         rivals.liger_selective),
        ("liger-scaled", None, "Liger fused linear scaled CE", "its CuTe kernels on the GPUs that "
         "they are for, elsewhere its fallback", LIGER, rivals.liger_scaled),
        ("cce", "cpu", "Cut Cross-Entropy, torch_compile", "inductor over full logits", CCE,
         lambda: rivals.cce("torch_compile")),
        ("cce-triton", "cuda", "Cut Cross-Entropy", "its Triton kernels", CCE,
         lambda: rivals.cce("cce")),
    )
)  # fmt: skip


def named(names: Iterable[str] | None, device: str) -> list[Provider]:
    """The providers of these names; by default all that serve tensors of the device type.

    Raises:
        ValueError: a name that is none of ``PROVIDERS``, or does not serve the device.
    """
    known = {provider.name: provider for provider in PROVIDERS if provider.serves(device)}
    wanted = list(known if names is None else names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"provider: got {unknown[0]!r}, want one of {', '.join(known)} on this device"
        )
    return [known[name] for name in wanted]


def available(names: Iterable[str] | None = None, *, device: str = "cpu") -> list[Loaded]:
    """The ``named`` providers, loaded or with the reason why they cannot be."""
    return [_load(provider) for provider in named(names, device)]


def _load(provider: Provider) -> Loaded:
    try:
        return Loaded(provider, provider.load(), None)
    except (ImportError, RuntimeError) as error:
        return Loaded(provider, None, str(error))
    except Exception as error:  # a rival may fail at import in any way
        if provider.requirement is None:
            raise
        return Loaded(provider, None, f"{type(error).__name__}: {error}")


def version(provider: Provider) -> str | None:
    """The installed version; ``None`` where nothing of that name is installed."""
    if provider.requirement is not None:
        name = provider.requirement.partition("==")[0]
    elif provider.name.startswith("ours"):
        name = "wavalign-fast"
    else:
        return str(torch.__version__)
    return installed_version(name)
