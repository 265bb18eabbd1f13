"""``wavalign-fast bench``: times the losses against other libraries."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from wavalign_fast.errors import user_input
from wavalign_fast.outputs import check_output


def add_bench(commands: Any) -> None:
    """Adds the command to the parser."""
    bench = commands.add_parser("bench", help="time the losses against other libraries")
    bench.add_argument("--quick", action="store_true", help="small shapes only, a few minutes")
    bench.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the CPU, and the GPU if there is one"
    )
    bench.add_argument(
        "--output",
        type=Path,
        default=Path("wavalign-bench"),
        help="directory for the results; default: %(default)s",
    )
    bench.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    with user_input("bench"):
        check_output(args.output / "results.json")
    suite = _benchmarks("suite")
    with user_input("bench"):
        devices = suite.devices(args.device)
        args.output.mkdir(parents=True, exist_ok=True)
    return int(suite.bench(quick=args.quick, devices=devices, output=args.output))


def _benchmarks(name: str) -> Any:
    """Imports a benchmark module from the installed package or from the surrounding checkout."""
    package = "wavalign_fast.benchmarks"
    folder = Path(__file__).parents[1] / "benchmarks"
    if importlib.util.find_spec(package) is None and (folder / "suite.py").exists():
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")
