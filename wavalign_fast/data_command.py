"""``wavalign-fast data``: check dialogues, make pairs of them for DPO, encode their audio."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.errors import shown

if TYPE_CHECKING:
    from wavalign_fast.data.dialogues.schemas import ReadOptions

ALL_TASKS = "all"


def add_data(commands: Any) -> None:
    """Adds the command and its own commands to the parser."""
    parser = commands.add_parser("data", help="check dialogues, make pairs of them, encode audio")
    own = parser.add_subparsers(metavar="COMMAND")
    _add_check(own)
    parser.set_defaults(commands=list(own.choices))
    for each in own.choices.values():
        each.set_defaults(parser=each, options=list(each._option_string_actions))


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="find what is wrong with dialogues and their WAV files",
        description="The exit status is 0 without errors (warnings may remain), 1 with errors, and "
        "2 if a file cannot be read.",
    )
    _add_files(parser)
    parser.add_argument(
        "--no-audio", action="store_true", help="leave the WAV files alone; much faster"
    )
    parser.add_argument(
        "--show",
        type=_count,
        default=5,
        metavar="N",
        help="findings of each kind to print; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="print every finding as JSON")
    parser.set_defaults(command=_check)


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Adds the files to read, and the options that a run would read them with."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        type=Path,
        help="JSONL, a JSON list, or a directory of Hugging Face datasets",
    )
    parser.add_argument(
        "--task-types",
        type=_task_types,
        default=("s2s",),
        metavar="LIST",
        help="task types to keep, separated by commas, or 'all'; default: s2s",
    )
    parser.add_argument(
        "--audio-base",
        type=Path,
        metavar="DIR",
        help="folder that relative paths start from; default: that of each FILE",
    )
    parser.add_argument(
        "--force-s2s",
        action="store_true",
        help="give each question of the legacy schema an audio tag, also without an audio",
    )


def _read_options(args: argparse.Namespace) -> "ReadOptions":
    from wavalign_fast.data.dialogues.schemas import ReadOptions

    return ReadOptions(
        task_types=args.task_types, audio_base_path=args.audio_base, force_s2s=args.force_s2s
    )


def _check(args: argparse.Namespace) -> int:
    from wavalign_fast.data.dialogues.check import check_files
    from wavalign_fast.data.dialogues.check_page import as_json, as_text

    check = check_files(args.files, _read_options(args), look_at_audio=not args.no_audio)
    if args.json:
        print(json.dumps(as_json(check), ensure_ascii=False, indent=1))
    else:
        print(as_text(check, shown=args.show))
    return check.exit_status


def _task_types(text: str) -> tuple[str, ...] | None:
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    if not names:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted e.g. s2s,asr or all")
    return None if names == (ALL_TASKS,) else names


def _count(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or not 0 < len(text) < 10 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted a whole number >= 1")
    return int(text)
