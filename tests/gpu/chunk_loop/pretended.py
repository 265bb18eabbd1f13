"""A pretended GPU: tensors report ``cuda:0``, hold their values, and are computed on the CPU.

It runs the host's side of a step as a GPU would see it, and records launches, copies to the device
and host syncs. The package's own ops run down to the row kernels, which are replaced by their
definition. There is no autograd: torch without CUDA has none for such tensors.

A launch is a call of torch that computes something on the device, or a row kernel, because that is
what costs the host time. A library may launch two kernels for a GEMM, or copy before an in-place
update; neither shows here.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.gpu.wrapped import Wrapped
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.ops import operands
from wavalign_fast.ops.chunked import api, autograd, compaction, kernels, products, row_ops

DEVICE = torch.device("cuda:0")
LAUNCH_NOTHING = {
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "lift_fresh",
    "alias",
    "as_strided",
    "detach",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "squeeze",
    "split_with_sizes",
    "t",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
    "_unsafe_view",
}
"""Calls that only make a view, or allocate memory."""
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
PRODUCTS = {"mm", "addmm", "addmm_", "bmm"}
OPS = (
    autograd.chunked_logprob_op,
    autograd.chunked_logprob_backward_op,
    autograd.chunked_hybrid_step_op,
    autograd.scale_gradients_,
    compaction.compact_rows,
    compaction.gather_live_rows,
    compaction.scatter_live_rows,
)
KERNELS = (
    "row_stats",
    "row_gradient_",
    "hybrid_rows_",
    "compact_rows",
    "gather_rows",
    "scatter_rows_",
    "scale_",
)


class OnGpu(Wrapped):
    """A CPU tensor that reports a GPU as its device."""

    place = DEVICE

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    # Torch's own versions ask CUDA for a device.
    def __getitem__(self, index: Any) -> "OnGpu":
        return OnGpu(self.inner[tree_map(_inside, index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self[index].copy_(value)

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.aten.copy_.default(self, source, non_blocking)

    def __invert__(self) -> torch.Tensor:
        return torch.bitwise_not(self)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a pretended GPU that is not switched on")


class Product(NamedTuple):
    """A matrix product ``[rows, inner] @ [inner, columns]``."""

    rows: int
    inner: int
    columns: int
    result: torch.dtype


class Pretended(TorchDispatchMode):
    """The events on the device since it was switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.copies: list[int] = []
        """Bytes of each copy to the device."""
        self.products: list[Product] = []
        self.capturing = False
        self.tall_agrees = True
        """What the library's probe reports for taller GEMMs."""
        self.made: list[tuple[str, tuple[int, ...], torch.dtype]] = []
        """Calls with one result: name, shape and type."""

    def classes(self, layout: ModalityLayout) -> Any:
        """A context in which the classes of the ids are on the device, as after the first step."""
        table = self.put(layout._table(torch.device("cpu")))
        return mock.patch.dict(layout._tables, {DEVICE: table})

    def put(self, tensor: torch.Tensor) -> OnGpu:
        """The tensor on the device; this copy is not counted."""
        return OnGpu(tensor.detach().clone())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for op in OPS:
            if func is op._opoverload:
                with self:
                    return op._init_fn(*args, **kwargs)
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        there = any(isinstance(leaf, OnGpu) for leaf in leaves)
        asked = kwargs.get("device")
        if not there and (asked is None or torch.device(asked).type != "cuda"):
            kwargs.pop("pin_memory", None)
            return func(*args, **kwargs)
        self._note(name, args, kwargs, there)
        on_cpu = asked is not None and torch.device(asked).type == "cpu"
        args, kwargs = tree_map(_inside, (args, kwargs))
        found = _computed(func, name, args, kwargs)
        if isinstance(found, torch.Tensor):
            self.made.append((name, tuple(found.shape), found.dtype))
        if name in ("empty", "new_empty", "empty_like"):
            found.view(torch.uint8).fill_(0xFF)  # NaN: nobody may read uninitialised memory
        return found if on_cpu else tree_map(_outside, found)

    def _note(self, name: str, args: Any, kwargs: Any, there: bool) -> None:
        crossing = name in ("_to_copy", "copy_") and not all(
            isinstance(leaf, OnGpu) or not isinstance(leaf, torch.Tensor) or leaf.dim() == 0
            for leaf in tree_leaves(args)
        )
        asked = kwargs.get("device")
        if name in WAITS or (there and asked is not None and torch.device(asked).type == "cpu"):
            raise AssertionError(f"{name} waits for the device")
        if crossing or (name == "_to_copy" and not there):
            source = args[1] if name == "copy_" else args[0]
            assert kwargs.get("non_blocking") or (name == "copy_" and args[2]), name
            self.copies.append(source.numel() * source.element_size())
        elif name not in LAUNCH_NOTHING:
            self.launches.append(name)
        if name in PRODUCTS:
            a, b = [t for t in args if isinstance(t, torch.Tensor)][-2:]
            result = kwargs.get("out", args[0])
            self.products.append(Product(*a.shape, b.shape[1], result.dtype))


def _inside(value: Any) -> Any:
    if isinstance(value, OnGpu):
        return value.inner
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value


def _outside(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, torch.Tensor) else value


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The result of a call; a GEMM with another result type is computed in that type."""
    kwargs.pop("pin_memory", None)
    wide = func._overloadname in ("dtype", "dtype_out") and args[-1]
    if name not in PRODUCTS or not wide:
        return func(*args, **kwargs)
    operands = [t.to(wide) if isinstance(t, torch.Tensor) else t for t in args[:-1]]
    product = func.overloadpacket(*operands)
    return kwargs["out"].copy_(product) if "out" in kwargs else product


class _Kernels:
    """The definition of the row kernels, each counted as one launch."""

    def __init__(self, device: Pretended) -> None:
        for name in KERNELS:
            setattr(self, name, self._launched(device, name))

    def _launched(self, device: Pretended, name: str) -> Callable[..., Any]:
        def launch(*args: Any, **kwargs: Any) -> Any:
            device.launches.append(name)
            args, kwargs = tree_map(_inside, (args, kwargs))
            with torch._C._DisableTorchDispatch():
                found = getattr(row_ops, name)(*args, **kwargs)
            return tree_map(_outside, found)

        return launch


@contextmanager
def gpu_pretended() -> Iterator[Pretended]:
    """A device that runs every call except the reference's, with operands that need gradients."""
    device = Pretended()
    on = (
        (operands, "choose_backend", _chosen),
        (kernels, "row_kernels_of", lambda backend: _Kernels(device)),
        (api, "wants_grad", lambda *tensors: any(isinstance(t, OnGpu) for t in tensors)),
        (products, "_tall_agrees", lambda *shapes: device.tall_agrees),
        (torch.cuda, "is_current_stream_capturing", lambda: device.capturing),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.Tensor, "pin_memory", lambda tensor: tensor),
    )
    with ExitStack() as stack:
        for place, name, value in on:
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(device)
        yield device


def _chosen(options: Any, hidden: torch.Tensor) -> str:
    return "definition" if isinstance(hidden, OnGpu) else "reference"
