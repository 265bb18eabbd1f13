"""Commands of the PTX rung.

    python -m tests.gpu.conformance.ptx counts --vocab 168072 --hidden 3584 --rows 1024
    python -m tests.gpu.conformance.ptx barriers

``counts`` prints what the compiled kernels do on that many rows, as JSON. Its fields are those of
``tools/ptx_emulator/counts.py``. ``barriers`` removes each barrier of the Triton kernels, weakens
each wait, one at a time, and prints how many of these changes the emulator finds.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from .backends import BACKENDS
from .compiled import CompiledSource, compiled_source
from .counting import KERNELS, Size, every_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.conformance.ptx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    counts = commands.add_parser("counts", help="counts of the kernels at one size")
    counts.add_argument("--vocab", type=int, required=True)
    counts.add_argument("--hidden", type=int, required=True)
    counts.add_argument("--rows", type=int, default=1)
    counts.add_argument("--logits", choices=DTYPES, default="float32")
    counts.add_argument("--operand", choices=DTYPES, default="bfloat16")
    counts.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    counts.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    commands.add_parser("barriers", help="how many removed barriers are found")
    args = parser.parse_args(argv)
    if args.command == "barriers":
        from .removal import removals  # with Triton, which counting CUDA kernels does not need

        return removals()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_counts(args, Path(folder)), indent=1))
    return 0


def _counts(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    def source(name: str) -> CompiledSource:
        return compiled_source(folder, name)

    size = Size(
        vocab=args.vocab,
        hidden=args.hidden,
        logits=DTYPES[args.logits],
        operand=DTYPES[args.operand],
    )
    found = every_count(args.backends, args.kernels, size, args.rows, source)
    return {
        "vocab": args.vocab,
        "hidden": args.hidden,
        "rows": args.rows,
        "logits": args.logits,
        "operand": args.operand,
        "counts": {
            backend: {kernel: counts.as_dict() for kernel, counts in table.items()}
            for backend, table in found.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
