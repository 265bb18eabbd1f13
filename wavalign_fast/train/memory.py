"""Reads how much memory this process uses."""

import os
from pathlib import Path

import torch


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Returns the memory of this process in bytes, as metrics.

    ``memory/rss_bytes`` is what it has of the machine's memory now. On a GPU, ``memory/peak_bytes``
    is the most that tensors took since the last call, and ``memory/reserved_bytes`` the most that
    torch's allocator held.
    """
    metrics = {}
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        metrics["memory/rss_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    if device.type == "cuda":
        metrics["memory/peak_bytes"] = float(torch.cuda.max_memory_allocated(device))
        metrics["memory/reserved_bytes"] = float(torch.cuda.max_memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)
    return metrics
