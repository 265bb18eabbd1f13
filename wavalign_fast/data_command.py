"""``wavalign-fast data``: check dialogues, make pairs of them for DPO, encode their audio."""

import argparse
import json
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.codec_arguments import add_codec_arguments, codec_options
from wavalign_fast.errors import UserError, shown, user_input
from wavalign_fast.outputs import check_output, write_whole
from wavalign_fast.progress_bars import progress_bars

if TYPE_CHECKING:
    from wavalign_fast.data.dialogues.pairs import PairOptions
    from wavalign_fast.data.dialogues.schemas import ReadOptions

ALL_TASKS = "all"


def add_data(commands: Any) -> None:
    """Adds the command and its own commands to the parser."""
    parser = commands.add_parser("data", help="check dialogues, make pairs of them, encode audio")
    own = parser.add_subparsers(metavar="COMMAND")
    _add_check(own)
    _add_pairs(own)
    _add_encode(own)
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


def _add_pairs(commands: Any) -> None:
    parser = commands.add_parser(
        "pairs",
        help="make pairs for DPO of several scored answers to each prompt",
        description="Pairs the best with the worst output of each record. Records have `output`: "
        "{key: {output-text, output-audio, gemini_score: {semantic_score, paralinguistic_score}}}.",
    )
    parser.add_argument("input", metavar="IN", type=Path, help="JSONL, JSON list or directory")
    parser.add_argument("--output", metavar="OUT", type=Path, required=True, help="JSONL to write")
    parser.add_argument(
        "--chosen-source", choices=("best_output", "sft_target"), default="best_output",
        help="the chosen answer: the best output or the demonstration; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--score-mode", choices=("sum", "semantic", "paralinguistic", "weighted"), default="sum",
        help="the score of an output; default: %(default)s of its two scores",
    )  # fmt: skip
    for name in ("semantic", "paralinguistic"):
        parser.add_argument(
            f"--{name}-weight", type=float, metavar="W",
            help=f"weight of the {name} score with --score-mode weighted; default: 1",
        )  # fmt: skip
    parser.add_argument(
        "--min-score-gap", type=float, default=1.0, metavar="GAP",
        help="smallest gap between best and worst output; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--tie", choices=("semantic", "first"), default="semantic",
        help="which of equal outputs counts: by semantic, then paralinguistic score (the paper), "
        "or the first (the released builder); default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--top-k", type=_count, metavar="N", help="keep the N largest gaps")
    parser.add_argument("--max-samples", type=_count, metavar="N", help="look at N records only")
    parser.add_argument(
        "--validate-audio", action="store_true", help="leave pairs with missing audio files out"
    )
    for name, of in (("prompt", "prompts"), ("gen", "outputs"), ("sft", "demonstrations")):
        parser.add_argument(
            f"--{name}-audio-root", metavar="DIR",
            help=f"put in front of the relative audio paths of {of}",
        )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(command=_pairs)


def _pairs(args: argparse.Namespace) -> int:
    from wavalign_fast.data.dialogues.containers import folder_of, raw_records
    from wavalign_fast.data.dialogues.pairs import build_pairs, unresolved_paths

    options = _pair_options(args)
    with user_input("data pairs"):
        if args.output.exists() and args.output.samefile(args.input):
            raise UserError(f"data pairs: --output is the input, {args.input}; wanted another file")
        check_output(args.output)
    pairs, counts = build_pairs(raw_records(args.input), folder_of(args.input), options)
    summary = counts.summary(options, written=len(pairs))
    if not pairs:
        raise UserError(
            f"data pairs: no pair of {counts.scanned} records; " + "; ".join(_reasons(summary))
        )
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
    with user_input("data pairs"):
        write_whole(args.output, "".join(lines).encode("utf-8"))
    print(json.dumps(summary, ensure_ascii=False, indent=1) if args.json else _as_text(summary))
    if lost := unresolved_paths(pairs, args.output.parent):
        print(
            f"note: {lost} audio paths in {args.output} lead nowhere from its folder; give "
            "absolute roots, or read it with the folder that they start from",
            file=sys.stderr,
        )
    return 0


def _pair_options(args: argparse.Namespace) -> "PairOptions":
    from wavalign_fast.data.dialogues.pairs import PairOptions

    given = {
        name: value
        for name in ("semantic_weight", "paralinguistic_weight")
        if (value := getattr(args, name)) is not None
    }
    if given and args.score_mode != "weighted":
        option = next(iter(given)).replace("_", "-")
        args.parser.error(f"--{option} is for --score-mode weighted, not {args.score_mode}")
    names = {one.name for one in fields(PairOptions)} - {"semantic_weight", "paralinguistic_weight"}
    return PairOptions(**{name: getattr(args, name) for name in names}, **given)


def _as_text(summary: dict[str, Any]) -> str:
    lines = [f"pairs       {summary['kept']} of {summary['scanned']} records"]
    if summary["not_in_top_k"]:
        lines.append(f"left out    {summary['not_in_top_k']} with smaller gaps than the top k")
    lines.append(f"largest gap {summary['max_gap']:g} (id {shown(summary['max_gap_id'])})")
    return "\n".join([*lines, *(f"skipped     {reason}" for reason in _reasons(summary))])


def _reasons(summary: dict[str, Any]) -> list[str]:
    """Returns how many records were skipped for each reason, and where the first of them stand."""
    return [
        f"{count}: {reason} ({', '.join(places)}{', …' if count > len(places) else ''})"
        for (reason, count), places in zip(
            summary["skipped_because"].items(), summary["first_skipped"].values(), strict=True
        )
    ]


def _add_encode(commands: Any) -> None:
    parser = commands.add_parser(
        "encode",
        help="encode the audio of dialogues before a run, in parallel",
        description="Puts the codes of all WAV files into the cache of codes that a run reads. The "
        "same command again goes on where it was stopped. The exit status is 1 if a file failed.",
    )
    _add_files(parser)
    add_codec_arguments(parser, required=True)
    parser.add_argument(
        "--cache", type=Path, default=Path("audio_cache"), metavar="DIR",
        help="the cache, as task.cache of a run; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--answers-only", action="store_true",
        help="leave out what the user says, for a family that hears it without codes",
    )  # fmt: skip
    parser.add_argument("--workers", type=_count, default=4, help="threads; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(command=_encode)


def _encode(args: argparse.Namespace) -> int:
    from wavalign_fast.data.dialogues.audios import audio_files
    from wavalign_fast.data.dialogues.read import read_dialogues
    from wavalign_fast.speech.code_cache import CodeCache
    from wavalign_fast.speech.codecs import open_codec
    from wavalign_fast.speech.encode_files import encode_files

    with user_input("data encode"):
        codec = open_codec(codec_options(args))
        files = audio_files(
            read_dialogues(args.files, _read_options(args)).dialogues,
            answers_only=args.answers_only,
        )
        cache = CodeCache(args.cache / "codes")
        with progress_bars() as show:
            progress = partial(show, "encode")
            found = encode_files(files, codec, cache, workers=args.workers, progress=progress)
    summary = {
        "files": found.done,
        "encoded": found.origins["codec"],
        "from_vita": found.origins["vita"],
        "kept": found.origins["cache"],
        "failed": {str(path): reason for path, reason in found.failed.items()},
        "codes": found.codes,
        "seconds": round(found.codes / codec.codes_per_second, 1),
        "cache": str(cache.directory),
    }
    print(json.dumps(summary, ensure_ascii=False, indent=1) if args.json else _encoded(summary))
    return int(bool(found.failed))


def _encoded(summary: dict[str, Any]) -> str:
    lines = [
        f"files       {summary['files']}: {summary['encoded']} encoded, {summary['kept']} were in "
        f"the cache, {summary['from_vita']} of VITA-Audio's own, {len(summary['failed'])} failed",
        f"codes       {summary['codes']} ({summary['seconds']} s of speech) in {summary['cache']}",
    ]
    return "\n".join([*lines, *(f"failed      {why}" for why in summary["failed"].values())])


def _task_types(text: str) -> tuple[str, ...] | None:
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    if not names:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted e.g. s2s,asr or all")
    return None if names == (ALL_TASKS,) else names


def _count(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or not 0 < len(text) < 10 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted a whole number >= 1")
    return int(text)
