"""Copies of tables from the CPU to a device, without a host sync."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

ALIGN = 16
"""Alignment in bytes of each table in the buffer that holds several."""


def capturing(device: torch.device) -> bool:
    """Whether the current stream captures a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_in_capture(device: torch.device, **tables: Tensor | None) -> None:
    """Refuses tables on the CPU while ``device`` captures a graph.

    The copy to the device would be made once, so every replay would use the captured values.

    Raises:
        ValueError: the message names the first such table.
    """
    if not capturing(device):
        return
    for name, table in tables.items():
        if table is not None and table.device.type == "cpu":
            raise ValueError(
                f"{name}: got a tensor on the CPU while a CUDA graph is captured, want it on "
                f"{device}: every replay would use the values captured now. LossOptions.live_rows "
                "bounds the rows that carry loss"
            )


def refuse_meta(device: torch.device, **tables: Any) -> None:
    """Refuses tables on the meta device, unless ``device`` is the meta device too.

    Raises:
        ValueError: the message names the first such table.
    """
    for name, table in tables.items():
        if isinstance(table, Tensor) and table.device.type == "meta" != device.type:
            raise ValueError(f"{name}: got a tensor on meta, want {device}, where hidden is")


def copied_to(table: Tensor, device: torch.device, name: str = "table") -> Tensor:
    """The table on ``device``; ``name`` is what an error calls it."""
    if table.device == device:
        return table
    refuse_in_capture(device, **{name: table})
    if table.device.type == "cpu" and device.type != "meta":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def copied_together(device: torch.device, *values: Any) -> tuple[Any, ...]:
    """The values with all their tensors on ``device``; those on the CPU get there in one copy.

    A value is a tensor, or a dataclass, named tuple or dictionary of values.
    """
    tables: list[Tensor] = []

    def noted(table: Tensor) -> Tensor:
        tables.append(table)
        return table

    for value in values:
        _mapped(value, noted)
    if all(table.device == device for table in tables):
        return values
    there = iter(_in_one_copy(tables, device))
    return tuple(_mapped(value, lambda table: next(there)) for value in values)


def _in_one_copy(tables: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    away = [table for table in tables if table.device.type == "cpu"]
    stays = device.type in ("cpu", "meta")
    if stays or len(away) < 2 or torch.compiler.is_compiling():
        return [copied_to(table, device) for table in tables]
    refuse_in_capture(device, table=away[0])
    starts = [0]
    for table in away:
        starts.append(starts[-1] + -(-table.numel() * table.element_size() // ALIGN) * ALIGN)
    packed = torch.empty(starts[-1], dtype=torch.uint8, device="cpu", pin_memory=True)
    for table, place in zip(away, _views(packed, away, starts), strict=True):
        place.copy_(table.detach())
    arrived = iter(_views(packed.to(device, non_blocking=True), away, starts))
    return [
        next(arrived) if table.device.type == "cpu" else copied_to(table, device)
        for table in tables
    ]


def _views(memory: Tensor, tables: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    """Views of ``memory``, which holds all the tables, as each of them."""
    return [
        memory[start : start + table.numel() * table.element_size()]
        .view(table.dtype)
        .view(table.shape)
        for table, start in zip(tables, starts, strict=False)
    ]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor in it replaced by ``function`` of it, in order."""
    if isinstance(value, Tensor):
        return function(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value  # torch 2.10's tracer cannot ask their types for fields
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        mapped = {name: _mapped(part, function) for name, part in found.items()}
        # A new object checks its tensors again, so one that would be equal is not made.
        changed = any(mapped[name] is not part for name, part in found.items())
        return replace(value, **mapped) if changed else value
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_mapped(part, function) for part in value)
    if isinstance(value, dict):
        return {name: _mapped(part, function) for name, part in value.items()}
    return value
