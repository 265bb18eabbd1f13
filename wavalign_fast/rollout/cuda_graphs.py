"""Captures a step of work on a GPU as a CUDA graph, which one launch repeats."""

from collections.abc import Callable

import torch


def run_aside(step: Callable[[], None]) -> None:
    """Runs a step on a stream of its own, as CUDA asks for before a capture.

    Libraries allocate their workspaces and choose their kernels at their first calls, which a
    capture cannot record.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Records a step without running it, and returns what repeats it.

    Every repetition reads and writes the tensors of now, at their addresses of now.

    Raises:
        RuntimeError: the step waits for the device, or does something else that no graph records.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may call CUDA meanwhile: NCCL's watchdog, an asynchronous checkpoint.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    replay: Callable[[], None] = graph.replay
    return replay
