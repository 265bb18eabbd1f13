"""``wavalign-fast init``: writes a config file for a user's own model and data."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, did_you_mean, shown, user_input
from wavalign_fast.outputs import write_whole
from wavalign_fast.recipes import PACKAGES

FOR_FAMILIES = "wavalign"
"""The recipe that takes models of any family."""


def add_init(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "init",
        help="write a config file with every key and its meaning",
        description="Writes a config file for your model and data. Start the run with: "
        "wavalign-fast train FILE",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="what to train, e.g. dialogue or wavalign, or a model family, e.g. vita_audio_plus: "
        "the recipe wavalign with such a model",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model directory")
    parser.add_argument("--data", type=Path, required=True, help="file to train on")
    parser.add_argument("--eval-data", type=Path, metavar="FILE", help="file of held-out records")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="further settings, e.g. task.judge.url=http://127.0.0.1:8000/v1",
    )
    parser.add_argument("--name", help="name of the run directory; default: that of the recipe")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("run.yaml"),
        metavar="FILE",
        help="where to write, - for the terminal; default: %(default)s",
    )
    parser.set_defaults(command=init)


def init(args: argparse.Namespace) -> int:
    """Runs the command."""
    from wavalign_fast.config.commented import commented_config
    from wavalign_fast.config.layers import merge, parse_overrides, settle
    from wavalign_fast.config.schema import RunConfig

    for flag, path, is_there in (
        ("--model", args.model, os.path.isdir),
        ("--data", args.data, os.path.exists),
        ("--eval-data", args.eval_data, os.path.exists),
    ):
        if path is not None and not is_there(path):
            found = "is no directory" if os.path.exists(path) else "is not there"
            raise UserError(f"{flag}: {path} {found}")
    recipe, family = _recipe_and_family(args.recipe, args.model)
    given = settle(parse_overrides(args.set), RunConfig)
    values: dict[str, Any] = {
        "name": args.name or args.recipe.replace("-", "_"),
        "model": {"path": str(args.model)},
        "task": {"data": str(args.data)} | family,
    }
    if args.eval_data is None:
        values["train"] = {"eval_items": 0, "eval_every": 0}
    else:
        values["task"]["eval_data"] = str(args.eval_data)
    text = commented_config(recipe, merge(values, given)).encode()
    if recipe == FOR_FAMILIES and "codec" not in given.get("task", {}):
        _say_that_a_codec_is_missing(args.model)
    if str(args.output) == "-":
        sys.stdout.buffer.write(text)
        return 0
    if os.path.isfile(args.output) or os.path.isdir(args.output):
        raise UserError(f"{args.output} is there already, wanted a new file")
    with user_input("--output"):
        write_whole(args.output, text)
    place = shlex.quote(str(args.output))
    print(f"config: {args.output}\nstart it with: wavalign-fast train {place}")
    return 0


def _say_that_a_codec_is_missing(model: Path) -> None:
    from wavalign_fast.models.families.checkpoint import open_family
    from wavalign_fast.models.families.registry import find_family
    from wavalign_fast.speech.codecs import KINDS

    family = find_family(model)
    if family is not None:
        kind = family.codec(open_family(model, family)[1])
        own = "" if kind in KINDS else ", which this package lacks: name one of yours"
        print(
            f"note: without task.codec no clip is encoded and answers have no sound; {family.NAME} "
            f"has the codec {kind}{own}; docs/speech.md lists kinds and options",
            file=sys.stderr,
        )


def _recipe_and_family(name: str, model: Path) -> tuple[str, dict[str, str]]:
    """Returns the recipe of a name, and the option that names the family if that is one.

    Raises:
        UserError: it is neither a recipe nor a family, or the model is of another family.
    """
    if name in PACKAGES:
        return name, {}
    from wavalign_fast.models.families.checkpoint import open_family
    from wavalign_fast.models.families.registry import FAMILIES, family_of

    families = {family: family for family in FAMILIES}
    families |= {"vita_audio_plus": "vita_audio"}  # what its makers call one kind of it
    if name not in families:
        known = [*PACKAGES, *families]
        raise UserError(
            f"recipe: {shown(name)} given, wanted one of {', '.join(known)}"
            f"{did_you_mean(name, known)}"
        )
    found = family_of(model).NAME
    if found != families[name]:
        raise UserError(f"--model: {model} is of the family {found}, wanted {families[name]}")
    open_family(model)  # what is wrong with its files is said now
    return FOR_FAMILIES, {"family": found}
