"""Describes this machine: its processor and its GPUs."""

import os
import platform
from pathlib import Path

import torch

from wavalign_fast.errors import one_line


def cpu() -> tuple[str, set[str]]:
    """Returns model name and feature flags of the first core."""
    model = platform.processor() or "unknown"
    flags: set[str] = set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return model, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            return model, set(value.split())
    return model, flags


def usable_cores() -> int | None:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def gpus() -> list[str]:
    """Returns the name of every GPU that torch sees; of an unusable driver, one with the reason."""
    if not torch.cuda.is_available():
        return []
    try:
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:
        return [f"seen, but not usable: {one_line(error)}"]
