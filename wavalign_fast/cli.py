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
from typing import Any

from wavalign_fast.environment_errors import explain_environment_error
from wavalign_fast.errors import UserError, did_you_mean, one_line, shown, user_input
from wavalign_fast.outputs import check_output, is_stdout
from wavalign_fast.signals import Interrupted, interruption, signals_as_exceptions
from wavalign_fast.standard_streams import standard_streams

BAD_INPUT = 2
LARGEST_SEED = 2**63 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 2 for the user's mistakes, 128 + n after signal n."""
    with standard_streams() as streams, signals_as_exceptions():
        try:
            status = _run(argv)
        except SystemExit as stop:  # argparse's end of --help, --version and a mistake
            if not stop.code and (failure := streams.failure()):
                raise SystemExit(_fail(failure)) from None
            raise
        failure = streams.failure()
        unwritten = _fail(failure) if failure else 0
    return status or unwritten


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parse(argv)
        return args.command(args)
    except Exception as error:
        if stop := interruption(error):
            return _interrupted(stop)
        ours = isinstance(error, UserError)
        reason = one_line(error) if ours else explain_environment_error(error)
        if reason is None:
            raise
        return _fail(reason)
    except KeyboardInterrupt as stop:
        return _interrupted(stop)


def _interrupted(stop: KeyboardInterrupt) -> int:
    number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
    print(f"wavalign-fast: interrupted by {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Like ``parse_args``, but key=value may stand anywhere among the options of ``train``."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args, rest = parser.parse_known_args(words)
    unknown = [text for text in rest if text.startswith("-") or not hasattr(args, "inputs")]
    if unknown:
        option = unknown[0].partition("=")[0]
        setting = _setting_hint(option) if hasattr(args, "inputs") else ""
        hint = setting or did_you_mean(option, args.options)
        args.parser.error(f"unknown argument {unknown[0]}{hint}")
    if not hasattr(args, "command"):
        args.parser.error(f"COMMAND is missing, wanted one of {', '.join(args.commands)}")
    if rest:
        args.inputs += rest
    args.words = words
    return args


def _setting_hint(option: str) -> str:
    """For a setting written as an option, ``--train.steps`` or ``--steps``: how it is given."""
    from wavalign_fast.config.layers import known_keys
    from wavalign_fast.config.schema import RunConfig

    word = option.strip("-").replace("-", "_")
    keys = [key for key in known_keys(RunConfig) if key == word or key.endswith(f".{word}")]
    return f"; did you mean {keys[0]}=VALUE, without dashes?" if word and keys else ""


def _fail(message: str) -> int:
    print(f"wavalign-fast: error: {message}", file=sys.stderr)
    return BAD_INPUT


class _Parser(argparse.ArgumentParser):
    """argparse with every error on one line, without the usage before it, and with a suggestion."""

    def error(self, message: str) -> Any:
        self.exit(_fail(f"{one_line(UserError(message))} (see {self.prog} --help)"))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(map(str, action.choices))
            raise argparse.ArgumentError(
                action,
                f"invalid choice: {shown(value)}, wanted one of {', '.join(names)}"
                f"{did_you_mean(str(value), names)}",
            )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wavalign-fast",
        description="Post-train a spoken dialogue model, listen to it, report on it.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show program's version number and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_train(commands)

    say = commands.add_parser("say", help="let a trained model answer, in text and speech")
    say.add_argument("prompt", help='what to ask, e.g. "eighty seven plus six"')
    say.add_argument("--run", type=Path, required=True, help="run directory, e.g. runs/NAME")
    say.add_argument(
        "--out", type=Path, default=Path("answer.wav"), help="WAV file; by default %(default)s"
    )
    say.add_argument("--seed", type=_seed, default=0, help="seed of the sampled answer")
    say.set_defaults(command=_say)

    report = commands.add_parser("report", help="write report.html of a run again")
    report.add_argument("run", metavar="RUN_DIR", type=Path)
    report.set_defaults(command=_report)

    build = commands.add_parser("build-recipe", help="make a recipe's shipped files again")
    build.add_argument("recipe", help="e.g. spoken-sums")
    build.add_argument("--output", type=Path, help="directory; by default ./RECIPE-assets")
    build.set_defaults(command=_build_recipe)

    bench = commands.add_parser("bench", help="time the losses beside the rivals on this machine")
    bench.add_argument("--quick", action="store_true", help="small shapes, a few minutes")
    bench.add_argument(
        "--device", choices=("cpu", "cuda"), help="by default the CPU, and the GPU if there is one"
    )
    bench.add_argument(
        "--output", type=Path, default=Path("wavalign-bench"), help="where JSON and page go"
    )
    bench.set_defaults(command=_bench)

    doctor = commands.add_parser("doctor", help="report backends, compiler, CPU and versions")
    doctor.set_defaults(command=_doctor)
    _add_config(commands)
    parser.set_defaults(commands=list(commands.choices))
    for each in (parser, *commands.choices.values()):
        each.set_defaults(parser=each, options=list(each._option_string_actions))
    return parser


class _Version(argparse.Action):
    """argparse's own wants the text beforehand, and to look it up takes as long as to start."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        print(f"{parser.prog} {_version()}")
        parser.exit()


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("wavalign-fast")
    except metadata.PackageNotFoundError:
        return "of a source tree that is not installed"


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:  # no number, or more digits than Python converts
        value = -1
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} given, wanted a whole number >= 0 and <= {LARGEST_SEED}"
        )
    return value


def _add_config(commands: Any) -> None:
    config = commands.add_parser(
        "config", help="list recipes, arms and every key of a config, with its text and default"
    )
    config.add_argument(
        "keys", nargs="*", metavar="KEY", help="only this key or group, e.g. loss.gate"
    )
    config.add_argument("--recipe", help="recipe by name; by default all of them")
    config.set_defaults(command=_config)


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
    train.add_argument("--seed", type=_seed, help="same as train.seed=N")
    train.add_argument("--name", help="name of the run directory")
    train.add_argument(
        "--output", type=Path, default=Path("runs"), help="where runs go; by default ./runs"
    )
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    again.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    train.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )
    train.set_defaults(command=_train)


def _train(args: argparse.Namespace) -> int:
    from wavalign_fast.train_command import train

    return train(args, args.words)


def _config(args: argparse.Namespace) -> int:
    from wavalign_fast.config.listing import list_settings

    print(list_settings(args.keys, recipe=args.recipe))
    return 0


def _say(args: argparse.Namespace) -> int:
    from wavalign_fast.train.run_directory import arm_directories, read_run_config
    from wavalign_fast.train_command import quiet_libraries, task_maker

    directory, *others = arm_directories(args.run)
    config = read_run_config(directory)
    with user_input("recipe"):
        make_task = task_maker(config)
    with user_input("say"):
        check_output(args.out)

    from wavalign_fast.models import check_vocabulary, load_checkpoint
    from wavalign_fast.train.atomic_files import write_wav
    from wavalign_fast.train.checkpoint import CheckpointStore

    quiet_libraries()
    if others:
        names = ", ".join(arm.name for arm in (directory, *others))
        print(f"arms: {names}; answering with {directory.name}", file=sys.stderr)
    task = make_task()
    store = CheckpointStore(directory)
    with store.naming_an_older_one():
        model = load_checkpoint(store.newest)
    check_vocabulary(model, task.layout)
    # Text among the bytes of a sound would spoil it.
    text_to = sys.stderr if is_stdout(args.out) else sys.stdout
    with user_input("say"):
        sample = task.answer(model.eval(), args.prompt, seed=args.seed).samples[0]
        write_wav(args.out, sample.waveform, sample.sample_rate)
    print(sample.text, file=text_to)
    if sample.heard:
        print(f"heard: {sample.heard}", file=text_to)
    print(f"speech: {args.out}", file=text_to)
    return 0


def _report(args: argparse.Namespace) -> int:
    from wavalign_fast.train.run_directory import arm_directories
    from wavalign_fast.train_command import print_report

    arm_directories(args.run)  # refuses a directory without a run
    print_report(args.run)
    return 0


def _build_recipe(args: argparse.Namespace) -> int:
    from wavalign_fast.recipes import build_recipe

    output = args.output or Path(f"{args.recipe}-assets")
    try:
        with user_input("build-recipe"):
            check_output(output / "codebook.safetensors")
            build_recipe(args.recipe, output)
    except RuntimeError as error:
        raise UserError(one_line(error)) from error
    return 0


def _bench(args: argparse.Namespace) -> int:
    with user_input("bench"):
        check_output(args.output / "results.json")
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


if __name__ == "__main__":
    sys.exit(main())
