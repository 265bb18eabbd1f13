"""``wavalign-fast``: train a spoken dialogue model, listen to it, report on it.

Commands import what they need when they run, so that ``--help`` and mistakes on the command line
answer at once.
"""

import argparse
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.errors import UserError, one_line, user_input

if TYPE_CHECKING:
    from wavalign_fast.config import RunConfig
    from wavalign_fast.train.session import Plan
    from wavalign_fast.train.task import Task

BAD_INPUT = 2
TRAIN_PACKAGES = {
    "transformers",
    "safetensors",
    "numpy",
    "pydantic",
    "yaml",
    "rich",
    "pocketsphinx",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 2 for the user's mistakes, 128 + n after signal n."""
    args = _parse(argv)
    try:
        return args.command(args)
    except UserError as error:
        return _fail(one_line(error))
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_PACKAGES:
            raise
        return _fail(f"{error.name} is not installed; pip install 'wavalign-fast[train]'")
    except KeyboardInterrupt:
        print("wavalign-fast: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Like ``parse_args``, but key=value may stand anywhere among the options of ``train``."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-") or not hasattr(args, "inputs")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    if rest:
        args.inputs += rest
    return args


def _fail(message: str) -> int:
    print(f"wavalign-fast: error: {message}", file=sys.stderr)
    return BAD_INPUT


class _Parser(argparse.ArgumentParser):
    """argparse with every error on one line, without the usage before it."""

    def error(self, message: str) -> Any:
        self.exit(_fail(f"{message} (see {self.prog} --help)"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wavalign-fast",
        description="Post-train a spoken dialogue model, listen to it, report on it.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)

    say = commands.add_parser("say", help="let a trained model answer, in text and speech")
    say.add_argument("prompt", help='what to ask, e.g. "eighty seven plus six"')
    say.add_argument("--run", type=Path, required=True, help="run directory, e.g. runs/NAME")
    say.add_argument("--out", type=Path, default=Path("answer.wav"), help="WAV file to write")
    say.add_argument("--seed", type=int, default=0, help="seed of the sampled answer")
    say.set_defaults(command=_say)

    report = commands.add_parser("report", help="write report.html of a run again")
    report.add_argument("run", metavar="RUN_DIR", type=Path)
    report.set_defaults(command=_report)

    build = commands.add_parser("build-recipe", help="make a recipe's shipped files again")
    build.add_argument("recipe", help="e.g. spoken-sums")
    build.add_argument("--output", type=Path, help="directory; by default ./RECIPE-assets")
    build.set_defaults(command=_build_recipe)

    bench = commands.add_parser("bench", help="time the losses beside the rivals on this machine")
    bench.add_argument("--quick", action="store_true", help="small shapes, at most three minutes")
    bench.add_argument(
        "--device", choices=("cpu", "cuda"), help="by default the CPU, and the GPU if there is one"
    )
    bench.add_argument(
        "--output", type=Path, default=Path("wavalign-bench"), help="where JSON and page go"
    )
    bench.set_defaults(command=_bench)

    doctor = commands.add_parser("doctor", help="report backends, compiler, CPU and versions")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="post-train a model with a recipe",
        description="Layers, later ones win: recipe, arm, CONFIG.yaml, key=value.",
    )
    train.add_argument(
        "inputs",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help="one config file and any overrides, e.g. train.steps=20",
    )
    train.add_argument("--recipe", help="recipe by name, e.g. spoken-sums")
    arms = train.add_mutually_exclusive_group()
    arms.add_argument("--arm", help="variant of the recipe to train")
    arms.add_argument("--arms", help="several variants, separated by commas")
    arms.add_argument("--all-arms", action="store_true", help="every variant of the recipe")
    train.add_argument("--seed", type=int, help="same as train.seed=N")
    train.add_argument("--name", help="name of the run directory")
    train.add_argument("--output", type=Path, default=Path("runs"), help="where runs go")
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    again.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    train.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )
    train.set_defaults(command=_train)


def _train(args: argparse.Namespace) -> int:
    configs = _resolve(args)
    if args.print_config:
        from wavalign_fast.config_layers import dump_config

        print("---\n".join(dump_config(config) for config in configs), end="")
        return 0
    root = args.output / (configs[0].name or _default_name(configs))
    plans = _plan(configs, root)

    from rich.console import Console

    from wavalign_fast.train.guards import Stopped
    from wavalign_fast.train.session import run_plans

    _quiet_libraries()
    try:
        run_plans(plans, resume=args.resume, overwrite=args.overwrite, console=Console())
    except Stopped as stopped:
        print(f"wavalign-fast: {stopped}; go on with --resume", file=sys.stderr)
        return 128 + stopped.signal_number
    print(f"run:    {root}")
    return _write_report(root)


def _resolve(args: argparse.Namespace) -> "list[RunConfig]":
    """One config an arm, from all layers."""
    from wavalign_fast.config_layers import (
        choose_arm,
        merge,
        parse_overrides,
        read_config_file,
        resolve_config,
    )
    from wavalign_fast.recipes import load_recipe

    files = [text for text in args.inputs if "=" not in text]
    if len(files) > 1:
        raise UserError(f"{len(files)} config files given ({', '.join(files)}), wanted one")
    user = read_config_file(Path(files[0])) if files else {}
    overrides = parse_overrides(text for text in args.inputs if "=" in text)
    flags = {"recipe": args.recipe, "arm": args.arm, "name": args.name}
    user = merge(merge(user, overrides), {k: v for k, v in flags.items() if v is not None})
    if args.seed is not None:
        user = merge(user, {"train": {"seed": args.seed}})
    recipe = user.get("recipe")
    if not isinstance(recipe, str):
        raise UserError("no recipe given, wanted --recipe NAME or recipe: NAME in a config file")
    with user_input("recipe"):
        defaults, arms, _ = load_recipe(recipe)
    if args.all_arms:
        names: list[str | None] = list(arms)
    elif args.arms is not None:
        names = list(dict.fromkeys(name.strip() for name in args.arms.split(",")))
    else:
        names = [user.get("arm", defaults.get("arm"))]
    return [
        resolve_config([defaults, choose_arm(arms, name), {**user, "arm": name}]) for name in names
    ]


def _default_name(configs: "Sequence[RunConfig]") -> str:
    first = configs[0]
    return first.recipe if len(configs) > 1 or not first.arm else f"{first.recipe}-{first.arm}"


def _plan(configs: "Sequence[RunConfig]", root: Path) -> "list[Plan]":
    """One plan a config: in ``root`` itself, or in ``root/ARM`` for several arms."""
    from wavalign_fast.train.session import Plan

    several = len(configs) > 1
    plans = []
    for config in configs:
        directory = root / str(config.arm) if several else root
        plans.append(Plan(config=config, directory=directory, make_task=_task_maker(config)))
    return plans


def _task_maker(config: "RunConfig") -> Any:
    """Makes the recipe's task; its options are checked now, before anything is trained."""
    from wavalign_fast.config_layers import check_task_options
    from wavalign_fast.recipes import load_recipe

    _, _, factory = load_recipe(config.recipe)
    check_task_options(factory, config.task)

    def make() -> "Task":
        with user_input("task"):
            return factory(**config.task)

    return make


def _say(args: argparse.Namespace) -> int:
    from wavalign_fast.models import check_vocabulary, load_checkpoint
    from wavalign_fast.train.files import write_wav
    from wavalign_fast.train.run_dir import arm_directories, read_run_config

    _quiet_libraries()
    directory, *others = arm_directories(args.run)
    if others:
        names = ", ".join(arm.name for arm in (directory, *others))
        print(f"arms: {names}; answering with {directory.name}", file=sys.stderr)
    config = read_run_config(directory)
    with user_input("recipe"):
        task = _task_maker(config)()
    model = load_checkpoint(directory / "checkpoint")
    check_vocabulary(model, task.layout)
    with user_input("say"):
        sample = task.answer(model.eval(), args.prompt, seed=args.seed).samples[0]
        write_wav(args.out, sample.waveform, sample.sample_rate)
    print(sample.text)
    if sample.heard:
        print(f"heard: {sample.heard}")
    print(f"speech: {args.out}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from wavalign_fast.train.run_dir import arm_directories

    arm_directories(args.run)  # refuses a directory without a run
    return _write_report(args.run)


def _write_report(root: Path) -> int:
    from wavalign_fast.report import write_report

    print(f"report: {write_report(root)}")
    return 0


def _build_recipe(args: argparse.Namespace) -> int:
    from wavalign_fast.recipes import build_recipe

    output = args.output or Path(f"{args.recipe}-assets")
    try:
        with user_input("build-recipe"):
            build_recipe(args.recipe, output)
    except RuntimeError as error:
        raise UserError(one_line(error)) from error
    return 0


def _bench(args: argparse.Namespace) -> int:
    suite = _benchmarks("suite")
    with user_input("bench"):
        devices = suite.devices(args.device)
        args.output.mkdir(parents=True, exist_ok=True)
    return int(suite.bench(quick=args.quick, devices=devices, output=args.output))


def _benchmarks(name: str) -> Any:
    """A module of the benchmarks: of the installed package, or of the checkout around this one."""
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


def _doctor(args: argparse.Namespace) -> int:
    from wavalign_fast import doctor

    doctor.main()
    return 0


def _quiet_libraries() -> None:
    """transformers draws a progress bar for every file it saves; ours is the one to see."""
    from transformers.utils import logging

    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
