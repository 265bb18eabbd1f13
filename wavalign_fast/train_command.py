"""``wavalign-fast train``: turns the arguments of the command into runs.

Every mistake that can be found without torch is reported before torch is imported.
"""

import argparse
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast import recipes
from wavalign_fast.config.layers import (
    check_task_options,
    choose_arm,
    dump_config,
    merge,
    parse_overrides,
    resolve_config,
    settle,
)
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.config.yaml import read_config_file
from wavalign_fast.errors import UserError, did_you_mean, shown, user_input
from wavalign_fast.outputs import check_output
from wavalign_fast.train.directory_lock import LOCK_FILE, check_free, locked
from wavalign_fast.train.owned_files import CONFIG_FILE, REPORT_FILE, has_replaced, put_back
from wavalign_fast.train.run_directory import check_folder_of_arms, check_run
from wavalign_fast.train.torchrun import launcher, several_ranks, tell_torchrun

if TYPE_CHECKING:
    from wavalign_fast.train.ranks import Ranks
    from wavalign_fast.train.task_protocol import Task

KEY = re.compile(r"[^/=]*=")


def train(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Runs the command; ``words`` are the arguments as the user typed them."""
    configs = resolve(args)
    if args.print_config:
        print("---\n".join(dump_config(config) for config in configs), end="")
        return 0
    root = args.output / (configs[0].name or _default_name(configs))
    several = len(configs) > 1
    places = [root / str(config.arm) if several else root for config in configs]
    if args.resume and not any(os.path.exists(place) for place in places):
        raise UserError(f"nothing to resume in {places[0]}{_like(root)}")
    run = _Run(args, words, root, places, configs)
    if not several_ranks():
        with run.held():  # mistakes about places are reported before torch is imported
            return run.train_alone()
    return run.train_as_rank()


@dataclass(frozen=True)
class _Run:
    """What the command trains, and where."""

    args: argparse.Namespace
    words: Sequence[str]
    root: Path
    places: Sequence[Path]
    configs: Sequence[RunConfig]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the directories after checking that they can take the runs."""
        try:
            if len(self.configs) > 1:
                check_folder_of_arms(self.root, resume=self.args.resume)
            if not any(map(has_replaced, self.places)):
                self._check()
        except UserError:
            check_free([self.root, *self.places])  # perhaps unfinished work of another process
            raise
        with locked([self.root, *self.places]):
            for place in filter(has_replaced, self.places):
                put_back(place)
            self._check()  # another process may have written there in the meantime
            with user_input("report"):
                check_output(self.root / REPORT_FILE)
            yield

    def train_alone(self) -> int:
        """Trains in this process."""
        from wavalign_fast.train.ranks import started_ranks

        with started_ranks(self._timeout_s) as ranks:
            return self._train(ranks)

    def train_as_rank(self) -> int:
        """Trains as one of several ranks, of which the main one holds the directories."""
        from wavalign_fast.train.ranks import started_ranks
        from wavalign_fast.train.same_on_all import check_same_settings, check_shared

        with started_ranks(self._timeout_s) as ranks, ExitStack() as stack:
            flags = {"--resume": self.args.resume, "--overwrite": self.args.overwrite}
            check_same_settings([config.model_dump() | flags for config in self.configs], ranks)
            with ranks.failing_together():
                if ranks.is_main:
                    stack.enter_context(self.held())
            check_shared(self.root / LOCK_FILE, ranks)
            if not ranks.is_main:
                quiet_rank()
            return self._train(ranks)

    @property
    def _timeout_s(self) -> float:
        return max(config.parallel.timeout_s for config in self.configs)

    def _check(self) -> None:
        for place, config in zip(self.places, self.configs, strict=True):
            check_run(place, config, resume=self.args.resume, overwrite=self.args.overwrite)

    def _train(self, ranks: "Ranks") -> int:
        from rich.console import Console

        from wavalign_fast.train.arms import RunSpec, run_all
        from wavalign_fast.train.stop_signal import Stopped

        quiet_libraries()
        several = len(self.configs) > 1
        specs: list[RunSpec] = [
            RunSpec(
                config=config,
                directory=place,
                make_task=task_maker(config),
                in_folder_of_arms=several,
                words=self.words,
            )
            for place, config in zip(self.places, self.configs, strict=True)
        ]
        console = Console(quiet=not ranks.is_main)
        try:
            run_all(
                specs,
                resume=self.args.resume,
                overwrite=self.args.overwrite,
                console=console,
                ranks=ranks,
            )
        except Stopped as stopped:
            if ranks.is_main:
                again = resume_command(self.words, self.args.inputs, None if several else self.root)
                message = f"{stopped}; continue with: {again}"
                print(f"wavalign-fast: {message}", file=sys.stderr)
                tell_torchrun(message)
            return 128 + stopped.signal_number
        if ranks.is_main:
            print(f"run:    {self.root}")
            print_report(self.root)
        return 0


def print_report(root: Path) -> None:
    """Writes the report of a run and prints its path."""
    from wavalign_fast.report import write_report

    print(f"report: {write_report(root)}")


def quiet_libraries() -> None:
    """Turns off transformers' progress bars, one per saved file, which would break up ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def quiet_rank() -> None:
    """Silences warnings that the main rank shows too.

    What may happen on one rank alone, such as a failure of its judge, is logged as an error.
    """
    logging.getLogger("wavalign_fast").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def resolve(args: argparse.Namespace) -> list[RunConfig]:
    """Returns one config per arm, merged from all layers."""
    for text in args.inputs:
        if not text.strip():
            raise UserError(f"{shown(text)} given, wanted a config file or key=value")
    files = [text for text in args.inputs if _names_a_file(text)]
    if len(files) > 1:
        raise UserError(f"{len(files)} config files given ({', '.join(files)}), wanted one")
    for text in files:
        if text.split(".")[0] in RunConfig.model_fields and not os.path.exists(text):
            raise UserError(f"{text} given, wanted key=value, e.g. train.steps=20")
    user = read_config_file(Path(files[0])) if files else {}
    given = settle(parse_overrides(text for text in args.inputs if text not in files), RunConfig)
    flags = {"recipe": args.recipe, "arm": args.arm, "name": args.name}
    flags = {key: value for key, value in flags.items() if value is not None}
    if args.seed is not None:
        flags["train"] = {"seed": args.seed}
    _refuse_both(given, flags)
    if "arm" in given and (args.all_arms or args.arms is not None):
        flag = "--all-arms" if args.all_arms else f"--arms {args.arms}"
        raise UserError(f"{flag} and arm = {shown(given['arm'])} given, wanted one")
    user = merge(merge(settle(user, RunConfig), given), flags)
    recipe = user.get("recipe")
    if not isinstance(recipe, str):
        seen = f"recipe: {shown(recipe)} given" if recipe is not None else "no recipe given"
        raise UserError(f"{seen}, wanted --recipe NAME or recipe: NAME in a config file")
    with user_input("recipe"):
        defaults, arms, factory = recipes.load_recipe(recipe)
    if args.all_arms:
        names: list[str | None] = list(arms)
    elif args.arms is not None:
        names = list(dict.fromkeys(name.strip() for name in args.arms.split(",")))
    else:
        names = [user.get("arm", defaults.get("arm"))]
    return [
        resolve_config([defaults, choose_arm(arms, name), {**user, "arm": name}], task=factory)
        for name in names
    ]


def resume_command(words: Sequence[str], inputs: Sequence[str], run: Path | None) -> str:
    """Returns the shell command that continues the run that ``words`` started.

    A config among the ``inputs`` that came through a pipe cannot be read again and is replaced by
    the ``config.yaml`` of ``run``.
    """
    kept = []
    for word in words[1:]:
        if len(word) > 3 and "--overwrite".startswith(word):  # or an abbreviation of it
            continue
        piped = word in inputs and os.path.exists(word) and not os.path.isfile(word)
        kept.append(str(run / CONFIG_FILE) if piped and run is not None else word)
    if "--resume" not in kept:
        kept.append("--resume")
    return shlex.join([*launcher(), words[0], *kept])


def task_maker(config: RunConfig) -> "Callable[[], Task]":
    """Returns a function that makes the recipe's task; its errors are the user's mistakes."""
    _, _, factory = recipes.load_recipe(config.recipe)
    check_task_options(factory, config.task)
    from_run = getattr(factory, "from_run", {})

    def make() -> "Task":
        others = {name: attrgetter(key)(config) for name, key in from_run.items()}
        with user_input("task"):
            return factory(**config.task, **others)

    return make


def _names_a_file(text: str) -> bool:
    """Whether an argument is the path of a config file, which may contain ``=``."""
    if not KEY.match(text):
        return not text.startswith("-")
    is_yaml = text.endswith((".yaml", ".yml"))
    known = re.split(r"[.=]", text)[0] in RunConfig.model_fields
    if not os.path.isfile(text):
        return is_yaml and not known
    if known and not is_yaml:
        raise UserError(f"{text} is a file and a setting; write ./{text} for the file")
    return True


def _refuse_both(given: dict[str, Any], flags: dict[str, Any], prefix: str = "") -> None:
    """Raises ``UserError`` for contradictions such as ``--seed 3`` and ``train.seed=4``."""
    for key, value in flags.items():
        if isinstance(value, dict):
            inner = given[key] if isinstance(given.get(key), dict) else {}
            _refuse_both(inner, value, f"{prefix}{key}.")
        elif key in given and given[key] != value:
            setting = f"{prefix}{key} = {shown(given[key])}"
            raise UserError(f"--{key} {value} and {setting} given, wanted one")


def _default_name(configs: Sequence[RunConfig]) -> str:
    first = configs[0]
    return first.recipe if len(configs) > 1 or not first.arm else f"{first.recipe}-{first.arm}"


def _like(root: Path) -> str:
    """Suggests a run with a similar name beside ``root``: ``; did you mean X?``."""
    try:
        return did_you_mean(root.name, os.listdir(root.parent))
    except OSError:
        return ""
