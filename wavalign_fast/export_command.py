"""``wavalign-fast export``: the model of a run, or its adapters, for other programs."""

import argparse
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, user_input


def add_export(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("export", help="write a run's model as a transformers directory")
    parser.add_argument(
        "run", metavar="RUN_DIR", type=Path, help="run directory, or one of its checkpoints"
    )
    parser.add_argument(
        "output", metavar="DIR", type=Path, nargs="?", help="new directory; default: RUN_DIR/model"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the written weights; default: that of the checkpoint",
    )
    parser.add_argument(
        "--format",
        choices=("transformers", "family"),
        default="transformers",
        help="family: the names and files of the model family that the run began with, for its own "
        "code; wants DIR; default: %(default)s",
    )
    parser.add_argument(
        "--adapters",
        action="store_true",
        help="write the LoRA adapters alone, into DIR, as peft loads them",
    )
    parser.set_defaults(command=export)


def export(args: argparse.Namespace) -> int:
    """Runs the command."""
    from wavalign_fast.train.owned_files import recorded_arms

    if arms := recorded_arms(args.run):
        raise UserError(
            f"{args.run} holds several arms ({', '.join(arms)}); wanted one, e.g. "
            f"{args.run / arms[0]}"
        )

    if (args.adapters or args.format == "family") and args.output is None:
        flag = "--adapters" if args.adapters else "--format family"
        args.parser.error(f"{flag}: DIR is missing, wanted a new directory")
    if args.format == "family" and (args.adapters or args.dtype):
        flag = "--adapters" if args.adapters else "--dtype"
        args.parser.error(f"--format family and {flag} given, wanted one; a family has its own")

    import torch

    from wavalign_fast.models.families.registry import named_family
    from wavalign_fast.train.export import (
        export_adapters,
        export_as_family,
        export_run,
        run_of,
    )
    from wavalign_fast.train.model_setup import load_base_model
    from wavalign_fast.train.run_directory import read_run_config
    from wavalign_fast.train_command import quiet_libraries, task_maker

    def config() -> Any:
        return read_run_config(run_of(args.run))

    def base() -> Any:
        return load_base_model(config().model, task_maker(config())())

    quiet_libraries()
    dtype = getattr(torch, args.dtype) if args.dtype else None
    with user_input("export"):
        if args.adapters:
            began_with = config().model.path
            print(f"adapters: {export_adapters(args.run, args.output, dtype, began_with)}")
        elif args.format == "family":
            began_with, named = config().model.path, config().task.get("family")
            if began_with is None:
                raise UserError(f"{args.run} began with its recipe's own model, which is of none")
            family = None if named is None else named_family(named)
            directory = Path(began_with).expanduser()
            written = export_as_family(args.run, args.output, directory, family, base)
            print(f"model: {written}")
            _say_which_mtp_layers(args.run, directory)
        else:
            print(f"model: {export_run(args.run, args.output, dtype, base)}")
        if args.output is not None and not args.adapters:
            _say_how_it_was_trained(args.run, args.output)
    return 0


def _say_which_mtp_layers(run: Path, began_with: Path) -> None:
    """Says that MTP layers are the old ones, if there are some and the run has trained none."""
    from wavalign_fast.models.json_files import read_config
    from wavalign_fast.train.export import trains_mtp

    if read_config(began_with).get("num_nextn_predict_layers") and not trains_mtp(run):
        print(
            f"MTP layers: those of {began_with}, which were not trained with the model "
            "(anchor.mtp_loss_weight)"
        )


def _say_how_it_was_trained(run: Path, output: Path) -> None:
    """Leaves a file from which ``evaluate`` asks the model as it was trained.

    A checkpoint is exported without its run's configuration too, and then nothing is known.
    A damaged one takes nothing from the model, which is written by now.
    """
    from wavalign_fast.models.families.dialogue_file import write_dialogue_file
    from wavalign_fast.train.export import run_of
    from wavalign_fast.train.owned_files import CONFIG_FILE
    from wavalign_fast.train.run_directory import read_run_config

    directory = run_of(run)
    if not (directory / CONFIG_FILE).is_file():
        return
    try:
        task = read_run_config(directory).task
    except UserError as error:
        print(f"how it was trained is not noted in {output}: {error}")
        return
    write_dialogue_file(output, task)
