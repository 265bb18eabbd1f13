"""A pretended GPU with autograd, for the trainer: it shows where CPU and GPU tensors would meet.

Its tensors say ``cuda:0`` in Python, hold their values, and are computed on the CPU; torch's own
engine sees the CPU, so the backward pass and the optimizer run, which ``chunk_loop/pretended.py``
cannot. A call with tensors of both devices raises, as on a GPU, and every wait of the host for the
device is recorded. FSDP2, custom ops and graphs do not run on it.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.gpu.wrapped import Wrapped
from wavalign_fast.models.head import OutputHead
from wavalign_fast.rollout import cuda_graphs
from wavalign_fast.train import checkpoint_layouts, policy, telemetry

DEVICE = torch.device("cuda:0")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim"}
"""Calls whose result the host reads, or whose shape depends on values."""
TAKE_CPU_INDICES = {"index", "index_put_", "index_put", "_index_put_impl_"}


class OnGpu(Wrapped):
    """A CPU tensor that reports a GPU as its device."""

    def __init__(self, inner: torch.Tensor) -> None:
        """Takes what ``__new__`` took."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: Any, context: Any, size: Any, stride: Any) -> "OnGpu":
        return OnGpu(parts["inner"])

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    # For torch's own versions the tensor is on the CPU already.
    def to(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        other = [arg for arg in args if isinstance(arg, torch.Tensor)]
        if other:
            return self.to(other[0].device, other[0].dtype, **options)
        asked = [
            arg for arg in (*args, options.get("device")) if isinstance(arg, str | torch.device)
        ]
        rest = [arg for arg in args if not isinstance(arg, str | torch.device)]
        options.pop("device", None)
        moved: Any = self
        if asked and torch.device(asked[0]).type == "cpu":
            moved = _ToCpu.apply(self, bool(options.get("non_blocking")))
        options.pop("non_blocking", None)
        return torch.Tensor.to(moved, *rest, **options) if rest or options else moved

    def cpu(self, *args: Any) -> torch.Tensor:
        return self.to("cpu")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Any = OnGpu(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return PretendedGpu.of_now().run(func, args, kwargs or {})


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: OnGpu, asynchronous: bool) -> torch.Tensor:
        PretendedGpu.of_now().wait("copy to the CPU")
        return tensor.inner.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return OnGpu(grads[0].clone()), None


class PretendedGpu(TorchDispatchMode):
    """A device to which tensors can be moved while this mode is on."""

    _now: "PretendedGpu | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """Each call in which the host waited for the device."""
        self.launches = 0

    @classmethod
    def of_now(cls) -> "PretendedGpu":
        """The device that is switched on."""
        assert cls._now is not None, "a tensor of a pretended GPU that is switched off"
        return cls._now

    def wait(self, name: str) -> None:
        """Records that the host waits, and the line of this package that made it."""
        ours = [frame for frame in traceback.extract_stack() if "/wavalign_fast/" in frame.filename]
        where = ours[-1] if ours else traceback.FrameSummary("", 0, "")
        self.waits.append(f"{name} in {where.filename.rpartition('/')[2]}: {where.line}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Computes one call, on the device if a tensor of it is there or its result shall be."""
        leaves = tree_leaves((args, kwargs))
        there = any(isinstance(leaf, OnGpu) for leaf in leaves)
        asked = kwargs.get("device")
        wanted = asked is not None and torch.device(asked).type == "cuda"
        if not there and not wanted:
            kwargs.pop("pin_memory", None)
            return func(*args, **kwargs)
        with self:  # in inference mode torch asks about calls that consist of others
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func.overloadpacket.__name__
        self._check(name, args, kwargs, leaves)
        self.launches += 1
        inner_args, inner_kwargs = tree_map(_inside, (args, kwargs))
        inner_kwargs.pop("pin_memory", None)
        found = func(*inner_args, **inner_kwargs)
        if name == "copy_" and not isinstance(args[0], OnGpu):
            return args[0]  # to a tensor on the CPU
        outside = tree_map(lambda value: OnGpu(value) if _is_tensor(value) else value, found)
        return return_and_correct_aliasing(func, args, kwargs, outside) if there else outside

    def _check(self, name: str, args: Any, kwargs: Any, leaves: list[Any]) -> None:
        crossing = name in ("_to_copy", "copy_")
        on_cpu = [x for x in leaves if _is_tensor(x) and not isinstance(x, OnGpu) and x.dim()]
        if name in TAKE_CPU_INDICES:
            indices = [x for x in tree_leaves(args[1]) if _is_tensor(x)]
            on_cpu = [x for x in on_cpu if not any(x is index for index in indices)]
            if any(x.dtype == torch.bool or not isinstance(x, OnGpu) for x in indices):
                self.wait(name)
        if on_cpu and not crossing:
            shapes = [tuple(x.shape) for x in on_cpu]
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, found {DEVICE} and cpu, "
                f"of shapes {shapes}"
            )
        if name in WAITS:
            self.wait(name)
        if on_cpu and crossing:
            later = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if not later:
                self.wait("copy to the device")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _inside(value: Any) -> Any:
    if isinstance(value, OnGpu):
        return value.inner
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value


def _plain_head(model: Any) -> OutputHead:
    return OutputHead(model.lm_head.weight, model.lm_head.bias)


def _tensor(data: Any, *, device: Any = None, made: Any = torch.tensor, **options: Any) -> Any:
    """``torch.tensor``, which asks CUDA for memory in C++."""
    tensor = made(data, **options)
    if device is None or torch.device(device).type == "cpu":
        return tensor
    PretendedGpu.of_now().wait("copy to the device")
    return OnGpu(tensor)


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """A device that tensors can be moved to by ``.to("cuda:0")`` and made on."""
    device = PretendedGpu()
    with (
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        mock.patch.object(torch, "tensor", _tensor),
        # A step of a decode is launched call by call instead.
        mock.patch.object(cuda_graphs, "run_aside", lambda step: step()),
        mock.patch.object(cuda_graphs, "capture", lambda step: step),
        # It takes no tensor of an unknown class.
        mock.patch.object(policy, "output_head", _plain_head),
        # What writes files reads memory, which these tensors have inside.
        mock.patch.object(checkpoint_layouts, "whole", lambda value: _inside(value)),
        mock.patch.object(telemetry, "memory_in_use", lambda device: {}),
        mock.patch.object(torch.cuda, "get_device_name", lambda device=None: "pretended"),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(PretendedGpu, "_now", device),
        device,
    ):
        yield device
