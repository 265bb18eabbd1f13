"""The arguments that name a speech codec on the command line."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, shown


def add_codec_arguments(parser: Any, *, required: bool = False) -> None:
    """Adds ``--codec`` and ``--codec-option`` to a parser or a group of one."""
    parser.add_argument(
        "--codec", required=required, metavar="KIND | FILE.yaml",
        help="kind of the speech codec, e.g. glm4_voice, or a file with its kind and options, see "
        "docs/speech.md",
    )  # fmt: skip
    parser.add_argument(
        "--codec-option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the codec, e.g. decoder=models/glm-4-voice-decoder",
    )  # fmt: skip


def codec_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of the codec, as ``open_codec`` takes them.

    Raises:
        UserError: the file cannot be read, or an option has another form.
    """
    from wavalign_fast.config.yaml import read_config_file, read_override

    path = Path(args.codec)
    is_file = path.suffix in (".yaml", ".yml")
    options: dict[str, Any] = read_config_file(path) if is_file else {"kind": args.codec}
    for text in args.codec_option:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--codec-option: {shown(text)} given, wanted KEY=VALUE")
        options[key] = read_override(value, f"--codec-option {key}")
    return {key: _plain(value) for key, value in options.items()}


def _plain(value: Any) -> Any:
    """Returns what YAML makes of a value; only the codec knows which type it wants."""
    from wavalign_fast.config.yaml import Source

    if isinstance(value, Source):
        return _plain(value.as_value())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
