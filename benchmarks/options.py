"""The command line that the benchmarks share."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .providers import named
from .record import RESULTS

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a benchmark is run."""

    shapes: tuple[str, ...] = ()
    """Names of shapes; empty: the benchmark's own choice."""
    operations: tuple[str, ...] = ()
    """Names of operations; empty: the benchmark's own choice."""
    dtypes: tuple[str, ...] = ("bf16", "fp32")
    providers: tuple[str, ...] | None = None
    """Names of providers; ``None``: all that load."""
    rounds: int = 5
    device: str = "cpu"
    quick: bool = False
    directory: Path | None = None
    """Where the JSON goes; ``None``: nowhere."""


def parse(
    description: str | None,
    *,
    shapes: Iterable[str] = (),
    operations: Iterable[str] = (),
    argv: Sequence[str] | None = None,
) -> Options:
    """Options from the command line; ``shapes`` and ``operations`` are the names it accepts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, names in (("--shape", tuple(shapes)), ("--operation", tuple(operations))):
        if names:
            parser.add_argument(
                flag, action="append", choices=names, help="may be given several times"
            )
    parser.add_argument("--dtype", action="append", choices=tuple(DTYPES), help="both by default")
    parser.add_argument("--providers", help="names, separated by commas; an unknown name lists all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a small shape, for CI")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--save", action="store_true", help="write into benchmarks/results")
    target.add_argument("--output", type=Path, metavar="DIR", help="write the JSON there")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds: got {args.rounds}, want >= 2")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, want cpu: this torch sees no GPU")
    providers = None if args.providers is None else tuple(args.providers.split(","))
    try:
        named(providers, args.device)
    except ValueError as error:
        parser.error(f"--providers: {error}")
    return Options(
        shapes=tuple(getattr(args, "shape", None) or ()),
        operations=tuple(getattr(args, "operation", None) or ()),
        dtypes=tuple(args.dtype or DTYPES),
        providers=providers,
        rounds=args.rounds,
        device=args.device,
        quick=args.quick,
        directory=RESULTS if args.save else args.output,
    )
