"""The command line: train a spoken dialogue model, listen to it, report on it.

Each command imports what it needs when it runs, so that ``--help`` and mistakes are answered at
once.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.bench_command import add_bench
from wavalign_fast.data_command import add_data
from wavalign_fast.environment_errors import explain_environment_error
from wavalign_fast.errors import (
    OtherRankError,
    UserError,
    did_you_mean,
    is_shared,
    one_line,
    shown,
    user_input,
)
from wavalign_fast.evaluate_command import add_evaluate
from wavalign_fast.export_command import add_export
from wavalign_fast.init_command import add_init
from wavalign_fast.judge_command import add_judge
from wavalign_fast.outputs import check_output, is_stdout
from wavalign_fast.plan_command import add_plan
from wavalign_fast.signals import Interrupted, interruption, signals_as_exceptions
from wavalign_fast.standard_streams import standard_streams
from wavalign_fast.train.torchrun import tell_torchrun
from wavalign_fast.train.waiting import LostRankError

BAD_INPUT = 2
MAIN_RANK_REPORTS_S = 1.5
OTHER_RANK_REPORTS_S = 3.0
LARGEST_SEED = 2**63 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    The status is 2 after a user's mistake and 128 + n after signal n.
    """
    with standard_streams() as streams, signals_as_exceptions():
        try:
            status = _run(argv)
        except SystemExit as stop:  # argparse leaves this way after --help, --version or a mistake
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
        if not _is_first_report(error) or isinstance(error, OtherRankError):
            return BAD_INPUT
        # torchrun shows as the cause what it is told first.
        return _fail(reason, is_cause=not isinstance(error, LostRankError))
    except KeyboardInterrupt as stop:
        return _interrupted(stop)


def _interrupted(stop: KeyboardInterrupt) -> int:
    number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
    print(f"wavalign-fast: interrupted by {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses like ``parse_args``, but accepts key=value anywhere among the options of ``train``."""
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
    """Suggests key=value for a setting written as an option, such as ``--train.steps``."""
    from wavalign_fast.config.layers import known_keys
    from wavalign_fast.config.schema import RunConfig

    word = option.strip("-").replace("-", "_")
    keys = [key for key in known_keys(RunConfig) if key == word or key.endswith(f".{word}")]
    return f"; did you mean {keys[0]}=VALUE, without dashes?" if word and keys else ""


def _is_first_report(error: Exception) -> bool:
    """Waits where another rank has the better message: torchrun ends all once one rank exits.

    A mistake in the arguments is made on every rank, and the main one reports it. Returns whether
    the wait came to its end: if a signal of torchrun ends it, another rank has reported.
    """
    seconds = 0.0
    if isinstance(error, OtherRankError | LostRankError):
        seconds = OTHER_RANK_REPORTS_S
    elif os.environ.get("RANK", "0") != "0" and not is_shared(error):
        seconds = MAIN_RANK_REPORTS_S
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return False
    return True


def _fail(message: str, *, is_cause: bool = True) -> int:
    rank = os.environ.get("RANK", "0")
    which = "" if rank == "0" else f" on rank {rank}"
    print(f"wavalign-fast: error{which}: {message}", file=sys.stderr)
    if is_cause:
        tell_torchrun(message)
    return BAD_INPUT


class _Parser(argparse.ArgumentParser):
    """Reports each error on one line, with a suggestion and without argparse's usage text."""

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
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_train(commands)

    say = commands.add_parser("say", help="answer a prompt with a trained model, as text and WAV")
    say.add_argument("prompt", help='what to ask, e.g. "eighty seven plus six"')
    say.add_argument("--run", type=Path, required=True, help="run directory, e.g. runs/NAME")
    say.add_argument(
        "--out",
        type=Path,
        default=Path("answer.wav"),
        help="WAV file to write, - for the standard output; default: %(default)s",
    )
    say.add_argument(
        "--seed", type=_seed, default=0, help="seed for sampling the answer; default: %(default)s"
    )
    say.set_defaults(command=_say)

    report = commands.add_parser("report", help="write a run's report.html again")
    report.add_argument("run", metavar="RUN_DIR", type=Path, help="run directory, e.g. runs/NAME")
    report.set_defaults(command=_report)

    add_init(commands)
    add_data(commands)
    add_export(commands)
    add_evaluate(commands)
    add_judge(commands)

    build = commands.add_parser("build-recipe", help="build the files that ship with a recipe")
    build.add_argument("recipe", help="name of the recipe, e.g. spoken-sums")
    build.add_argument("--output", type=Path, help="directory; default: ./RECIPE-assets")
    build.set_defaults(command=_build_recipe)

    add_bench(commands)
    doctor = commands.add_parser(
        "doctor", help="show which backends work here, and versions, CPU and compiler"
    )
    doctor.set_defaults(command=_doctor)
    add_plan(commands)
    _add_config(commands)
    parser.set_defaults(commands=list(commands.choices))
    for each in (parser, *commands.choices.values()):
        each.set_defaults(parser=each, options=list(each._option_string_actions))
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked for: that takes as long as everything else at start."""

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
    except ValueError:  # not a number, or more digits than Python converts
        value = -1
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} given, wanted a whole number >= 0 and <= {LARGEST_SEED}"
        )
    return value


def _add_config(commands: Any) -> None:
    config = commands.add_parser(
        "config", help="list recipes, arms and every configuration key with its default"
    )
    config.add_argument(
        "keys", nargs="*", metavar="KEY", help="list only this key or group, e.g. loss.gate"
    )
    config.add_argument("--recipe", help="list only this recipe, e.g. spoken-sums")
    config.set_defaults(command=_config)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="post-train a model with a recipe",
        description="The configuration has layers; later ones win: recipe, arm, CONFIG.yaml, "
        "key=value.",
    )
    train.add_argument(
        "inputs",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help="at most one config file, and any settings, e.g. train.steps=20",
    )
    train.add_argument("--recipe", help="name of the recipe, e.g. spoken-sums")
    arms = train.add_mutually_exclusive_group()
    arms.add_argument("--arm", help="train this variant of the recipe")
    arms.add_argument("--arms", help="train several variants, separated by commas")
    arms.add_argument("--all-arms", action="store_true", help="train every variant of the recipe")
    train.add_argument("--seed", type=_seed, help="same as train.seed=N")
    train.add_argument("--name", help="name of the run directory")
    train.add_argument(
        "--output",
        type=Path,
        default=Path("runs"),
        help="parent of the run directory; default: %(default)s",
    )
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    again.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    train.add_argument(
        "--print-config", action="store_true", help="print the merged configuration and exit"
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

    if not args.prompt.strip():
        raise UserError("say: the prompt is empty, wanted a question")
    directory, *others = arm_directories(args.run)
    config = read_run_config(directory)
    with user_input("recipe"):
        make_task = task_maker(config)
    if str(args.out) == "-":
        args.out = Path("/dev/stdout")
    with user_input("say"):
        check_output(args.out)

    from wavalign_fast.models import load_checkpoint
    from wavalign_fast.speech.wave_files import write_wave
    from wavalign_fast.train.checkpoint import CheckpointStore
    from wavalign_fast.train.export import model_directory
    from wavalign_fast.train.two_streams import check_heads

    quiet_libraries()
    if others:
        names = ", ".join(arm.name for arm in (directory, *others))
        print(f"arms: {names}; answering with {directory.name}", file=sys.stderr)
    task = make_task()
    store = CheckpointStore(directory)
    with store.naming_an_older_one():
        model = load_checkpoint(model_directory(directory))
    check_heads(model, task)
    # Text among the bytes of a WAV file would corrupt it.
    text_to = sys.stderr if is_stdout(args.out) else sys.stdout
    with user_input("say"):
        sample = task.answer(model.eval(), args.prompt, seed=args.seed).samples[0]
        if sample.waveform is not None:
            write_wave(args.out, sample.waveform, sample.sample_rate)
    print(sample.text, file=text_to)
    if sample.heard:
        print(f"heard: {sample.heard}", file=text_to)
    print(f"speech: {'none' if sample.waveform is None else args.out}", file=text_to)
    return 0


def _report(args: argparse.Namespace) -> int:
    from wavalign_fast.train.run_directory import arm_directories
    from wavalign_fast.train_command import print_report

    arm_directories(args.run)  # raises if there is no run
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


def _doctor(args: argparse.Namespace) -> int:
    from wavalign_fast import doctor

    doctor.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
