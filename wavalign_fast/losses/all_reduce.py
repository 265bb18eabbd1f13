"""Sums over the ranks of a process group, also on a device that its backend does not serve."""

import torch
import torch.distributed as dist


def in_process_group() -> bool:
    """Whether this process is a rank of ``torch.distributed``'s default process group."""
    return dist.is_available() and dist.is_initialized()


def sum_over_ranks(totals: torch.Tensor) -> torch.Tensor:
    """The sum of ``totals`` over the ranks of the default process group, on their device.

    A group made by ``init_process_group("nccl")`` has a backend for GPU tensors only; tensors on
    the CPU are then copied to the GPU and back. Without a group the result is ``totals``.

    Raises:
        ValueError: the group only has a backend for a device that this torch does not see.
    """
    if not in_process_group():
        return totals
    if torch.compiler.is_compiling():
        dist.all_reduce(totals)
        return totals
    place = _place_of_backend(totals.device, dist.get_backend_config())
    if place != totals.device.type and place != "cpu" and not _is_there(place):
        raise ValueError(
            f"process group: got a backend for {place} tensors only "
            f"({dist.get_backend_config()!r}), want one for {totals.device.type} tensors too, as "
            "in init_process_group('cpu:gloo,cuda:nccl')"
        )
    summed = totals if place == totals.device.type else totals.to(place)
    dist.all_reduce(summed)
    return summed.to(totals.device)


def _place_of_backend(device: torch.device, config: str) -> str:
    """The type of ``device`` if the group has a backend for it, else the first type it has one for.

    Args:
        config: backends in torch's notation, ``cpu:gloo,cuda:nccl``.
    """
    served = [part.partition(":")[0] for part in config.split(",")]
    return device.type if device.type in served else served[0]


def _is_there(device_type: str) -> bool:
    backend = getattr(torch, device_type, None)
    return backend is not None and backend.is_available()
