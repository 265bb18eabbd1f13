"""``wavalign-fast init``: writes a config file for a user's own model and data."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError
from wavalign_fast.outputs import write_whole


def add_init(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "init",
        help="write a config file with every key and its meaning",
        description="Writes a config file for your model and data. Start the run with: "
        "wavalign-fast train FILE",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="what to train, e.g. dialogue; see wavalign-fast config"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model directory")
    parser.add_argument("--data", type=Path, required=True, help="file to train on")
    parser.add_argument("--eval-data", type=Path, metavar="FILE", help="file of held-out records")
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

    for flag, path, is_there in (
        ("--model", args.model, os.path.isdir),
        ("--data", args.data, os.path.exists),
        ("--eval-data", args.eval_data, os.path.exists),
    ):
        if path is not None and not is_there(path):
            raise UserError(f"{flag}: {path} is not there")
    values: dict[str, Any] = {
        "name": args.name or args.recipe.replace("-", "_"),
        "model": {"path": str(args.model)},
        "task": {"data": str(args.data)},
    }
    if args.eval_data is None:
        values["train"] = {"eval_items": 0}
    else:
        values["task"]["eval_data"] = str(args.eval_data)
    text = commented_config(args.recipe, values).encode()
    if str(args.output) == "-":
        sys.stdout.buffer.write(text)
        return 0
    if os.path.isfile(args.output):
        raise UserError(f"{args.output} is there already, wanted a new file")
    write_whole(args.output, text)
    print(f"config: {args.output}\nstart it with: wavalign-fast train {args.output}")
    return 0
