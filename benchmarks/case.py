"""One comparison: checks every side, then measures time, CPU time and memory in one process."""

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import gpu, timing
from .options import DTYPES, Options
from .providers import Loaded, Unsupported, available, version
from .record import add_case, machine
from .report.tables import text_table
from .shapes import Head
from .truth import OURS, RIVALS, Result, Truth

BOUND = "three_gemms"
COMPILING = ("torch-compile", "cce")
CAPTURABLE = ("ours-cuda", "ours-triton")
# Up to torch 2.12 a failed capture breaks the process's allocator, and its random numbers on the
# GPU. There only the sides that must succeed are captured.
CAPTURES_MAY_FAIL = torch.__version__ >= "2.13"


class WrongResultError(Exception):
    """A side of ours exceeds its tolerance: nothing may be timed."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to compute the case."""

    name: str
    label: str
    run: Callable[[], Result] | None
    """Forward and backward; ``None`` where ``reason`` says why it cannot run."""
    ours: bool = False
    version: str | None = None
    runs: str | None = None
    """Which implementation of the provider runs here."""
    reason: str | None = None


@dataclass(kw_only=True)
class Case:
    """Operands, sides and the truth of one comparison."""

    shape: Head
    operation: str
    dtype: str
    sides: list[Side]
    truth: Callable[[], Truth]
    rows: Tensor
    """[N, H], the rows that carry loss."""
    weight: Tensor
    positions: int
    """Rows of the hidden states that get a gradient, with or without loss."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further entries of the record."""

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the two gradients, which every side must return."""
        numbers = self.positions * self.rows.shape[1] + self.weight.numel()
        return numbers * self.weight.element_size()


def provider_sides(
    options: Options, step: Callable[[Any], Callable[[], Result] | None]
) -> list[Side]:
    """A side for every provider; ``step`` makes its run from its calls, or returns ``None``."""
    chosen = available(options.providers, device=options.device)
    if options.quick and options.providers is None:
        chosen = [
            Loaded(loaded.provider, None, "compiling takes longer than all the rest of --quick")
            if loaded.calls is not None and loaded.provider.name in COMPILING
            else loaded
            for loaded in chosen
        ]
    return [_provider_side(loaded, step) for loaded in chosen]


def _provider_side(loaded: Loaded, step: Callable[[Any], Callable[[], Result] | None]) -> Side:
    provider, calls, reason = loaded
    run = None if calls is None else step(calls)
    return Side(
        name=provider.name,
        label=provider.label,
        run=run,
        ours=provider.name.startswith("ours"),
        version=version(provider),
        runs=provider.runs,
        reason=reason or (None if run else "has no such function"),
    )


def run_cases(name: str, cases: Iterable[Callable[[], Case]], options: Options) -> int:
    """Measures the cases in turn; returns 1 at the first wrong result of ours."""
    for build in cases:
        if record_case(name, build(), options) is None:
            return 1
    return 0


def record_case(name: str, case: Case, options: Options) -> dict[str, Any] | None:
    """Measures, prints and writes a case; returns ``None`` if a result of ours is wrong."""
    print(f"{name}: {case.shape.title}, {case.operation}, {case.dtype}", flush=True)
    try:
        record = measure(case, options)
    except WrongResultError as error:
        print(f"FAILED: {error}: nothing is recorded", file=sys.stderr)
        return None
    print(text_table(record), flush=True)
    if options.directory is not None:
        print(f"wrote {add_case(name, record, options.directory)}", flush=True)
    return record


def measure(case: Case, options: Options) -> dict[str, Any]:
    """The record of a case.

    Raises:
        WrongResultError: a side of ours fails the check. A rival that fails it is not timed.
    """
    # Or the second shape would be compiled for any size, and a rival's time depend on the order.
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and a reset would import it all
        torch.compiler.reset()
    facts = machine(options.device)
    truth: Truth | None = case.truth()
    sides = _checked(case, truth)
    if options.device != "cuda":
        truth = None  # large, and no graph needs it
    running: dict[str, Callable[[], Any]] = {
        side.name: side.run
        for side in case.sides
        if side.run is not None and sides[side.name]["outcome"] == "right"
    }
    checked = list(running)
    running[BOUND] = lambda: three_gemms(case.rows, case.weight)
    sides[BOUND] = {"label": "three products alone", "bound": True, "outcome": "right"}
    with _imports_frozen():
        clock = timing.clock_for(options.device)
        copy = timing.copy_side(options.device)
        with gpu.recorded(options.device, facts):
            times = timing.paired(
                running | {"copy": copy}, rounds=options.rounds, clock=clock, warm=checked
            )
            for side in case.sides if truth is not None else ():
                if side.name in checked:
                    sides[side.name]["graph"] = _timed_graph(side, case, truth, clock, options)
        truth = None
        copied = times.pop("copy")["wall_s"]
        del copy
        for name, run in running.items():
            times[name]["wall_ratio_to"].pop("copy")
            peak = clock.peak_extra_bytes(run)
            extra = None if peak is None else max(0, peak - case.gradient_bytes)
            sides[name] |= times[name] | {"extra_bytes_beyond_gradients": extra}
    flops = 6 * case.rows.numel() * case.weight.shape[0]
    return {
        "shape": asdict(case.shape) | {"live": case.rows.shape[0]},
        "operation": case.operation,
        "dtype": case.dtype,
        "device": options.device,
        "machine": facts,
        "tolerance": asdict(OURS[DTYPES[case.dtype]]),
        "rates": {
            "flops": flops,
            "gemm_flops_per_s": flops / times[BOUND]["wall_s"],
            "copy_bytes_per_s": 2 * timing.COPY_BYTES / copied,
        },
        "sides": sides,
        **case.facts,
    }


@contextmanager
def _imports_frozen() -> Iterator[None]:
    """Hides the objects alive now, most of them from imports, from the garbage collector.

    Examining them before every timing would take longer than a small case.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def three_gemms(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The GEMMs of every exact method: logits, dH and dW of the rows that carry loss."""
    logits = rows @ weight.T
    return logits @ weight, logits.T @ rows


def _checked(case: Case, truth: Truth) -> dict[str, dict[str, Any]]:
    """The entry of every side: its errors against float64 and the outcome of the check."""
    dtype = DTYPES[case.dtype]
    entries: dict[str, dict[str, Any]] = {}
    for side in case.sides:
        entry: dict[str, Any] = {
            "label": side.label, "version": side.version, "runs": side.runs, "ours": side.ours,
        }  # fmt: skip
        entries[side.name] = entry
        if side.run is None:
            entry |= {"outcome": "absent", "detail": side.reason}
        else:
            entry |= _judged(side, side.run, truth, dtype)
    return entries


def _judged(
    side: Side, run: Callable[[], Result], truth: Truth, dtype: torch.dtype
) -> dict[str, Any]:
    try:
        errors = truth.errors(run())
    except Exception as error:  # a rival may raise anything
        if side.ours and not isinstance(error, Unsupported):
            raise
        return {"outcome": "error", "detail": _first_line(error)}
    refused = (OURS if side.ours else RIVALS)[dtype].refuses(errors)
    if refused and side.ours:
        found = ", ".join(f"{name} {errors[name]:.1e}" for name in refused)
        raise WrongResultError(f"{side.name} is off in {found}, want {OURS[dtype]}")
    return {"outcome": "wrong" if refused else "right", "errors": errors}


def _timed_graph(
    side: Side, case: Case, truth: Truth, clock: timing.Clock, options: Options
) -> dict[str, Any]:
    """The side as a CUDA graph: the outcome of its check, and its time beside the three GEMMs.

    One graph is alive at a time: each keeps all the memory of a step.
    """
    if side.run is None or not (CAPTURES_MAY_FAIL or side.name in CAPTURABLE):
        return {"outcome": "error", "detail": "not tried with this torch"}
    entry, replay = _as_graph(side, side.run, truth, DTYPES[case.dtype])
    if replay is not None:
        running = {side.name: replay, BOUND: lambda: three_gemms(case.rows, case.weight)}
        times = timing.paired(running, rounds=options.rounds, clock=clock, warm=running)
        entry |= times[side.name]
    replay = running = None
    gpu.release_memory()
    return entry


def _as_graph(
    side: Side, run: Callable[[], Result], truth: Truth, dtype: torch.dtype
) -> tuple[dict[str, Any], gpu.Run | None]:
    """Captures the side; returns the outcome of the check, and the replay if it may be timed."""
    try:
        replay, result = gpu.captured(run)
    except Exception as error:  # most rivals have a host sync somewhere
        torch.cuda.synchronize()
        return {"outcome": "error", "detail": _first_line(error)}, None
    judged = _judged(side, lambda: result, truth, dtype)
    return judged, replay if judged["outcome"] == "right" else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
