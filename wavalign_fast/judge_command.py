"""``wavalign-fast judge check``: asks a judge once, before a long run depends on it."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.errors import UserError, naming, shorten, user_input

if TYPE_CHECKING:
    from wavalign_fast.rewards.judge import JudgeRequest, Judging
    from wavalign_fast.rewards.judge.options import JudgeOptions

NO_SCORE = 1
TONE_HZ, RATE, LOUDNESS = 440.0, 16_000, 0.3
MOST_SHOWN = 300


def add_judge(commands: Any) -> None:
    """Adds the command and its own commands to the parser."""
    parser = commands.add_parser("judge", help="try out a judge of spoken replies")
    own = parser.add_subparsers(metavar="COMMAND")
    check = own.add_parser(
        "check",
        help="ask for one score, and show how the server can be asked and how long it takes",
        description="The exit status is 0 with a score, 1 without, and 2 if the server cannot be "
        "asked at all.",
    )
    check.add_argument("--url", help="address of the server up to /v1")
    check.add_argument("--model", help="the model's name on the server")
    check.add_argument("--key-variable", metavar="NAME", help="environment variable with the key")
    check.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="file with the group judge; options win"
    )
    check.add_argument(
        "--audio", choices=("input_audio", "audio_url", "none"), help="how sound is sent"
    )
    check.add_argument(
        "--mode", choices=("holistic", "two_scores", "two_requests"), help="which scores"
    )
    check.add_argument(
        "--wav", type=Path, metavar="FILE", help="the reply's sound; default: a tone of one second"
    )
    check.add_argument(
        "--question", default="Please say hello.", help="what was asked; default: %(default)s"
    )
    check.add_argument(
        "--transcript", default="Hello.", help="what the reply says; default: %(default)s"
    )
    check.set_defaults(command=judge_check)
    parser.set_defaults(commands=list(own.choices))
    for each in own.choices.values():
        each.set_defaults(parser=each, options=list(each._option_string_actions))


def judge_check(args: argparse.Namespace) -> int:
    """Runs the command."""
    from wavalign_fast.rewards.judge import Judge

    options = _options(args)
    request = _request(args, options)
    with naming("judge"):
        judge = Judge(options)
    try:
        judging = judge.start([request])
        (found,) = judging.result()
        print(f"{judge.name}, model {options.model}")
        print(f"{_how(options, judge.response_format)}{_cost(judging)}")
    finally:
        judge.close()
    if found.score is None:
        detail = shorten(found.detail, MOST_SHOWN)
        print(f"wavalign-fast: no score: {found.cause}: {detail}", file=sys.stderr)
        return NO_SCORE
    several = ", ".join(f"{axis} {score:g}" for axis, score in found.scores.items())
    print(f"score {found.score:g}" + f" ({several})" * (len(found.scores) > 1))
    if found.justification:
        print(f"justification: {shorten(' '.join(found.justification.split()), MOST_SHOWN)}")
    return 0


def _options(args: argparse.Namespace) -> "JudgeOptions":
    from wavalign_fast.config.layers import group_from_file, read_group
    from wavalign_fast.rewards.judge.options import JudgeOptions

    values: dict[str, Any] = {}
    if args.config is not None:
        values = group_from_file(args.config, "judge", JudgeOptions).model_dump()
    given = {name: getattr(args, name) for name in ("url", "model", "key_variable")}
    given |= {"audio": args.audio, "mode": args.mode}
    values |= {name: value for name, value in given.items() if value is not None}
    if values.get("url") is None:
        raise UserError("--url: nothing given, wanted the address of a judge")
    # One score decides no share, and one from the cache says nothing about the server.
    return read_group("judge", JudgeOptions, values | {"cache": None, "max_missing": 1.0})


def _request(args: argparse.Namespace, options: "JudgeOptions") -> "JudgeRequest":
    from wavalign_fast.rewards.judge import JudgeRequest

    wav = None
    if args.wav is not None:
        with user_input("--wav"):
            wav = args.wav.read_bytes()
    elif options.audio != "none":
        from wavalign_fast.speech.wave_files import wave_bytes

        turns = 2 * math.pi * TONE_HZ / RATE
        wav = wave_bytes([LOUDNESS * math.sin(turns * place) for place in range(RATE)], RATE)
    return JudgeRequest(question=args.question, transcript=args.transcript, wav=wav)


def _how(options: "JudgeOptions", reply_format: str) -> str:
    sound = "without sound" if options.audio == "none" else f"sound as {options.audio}"
    return f"asked by {reply_format}, {sound}"


def _cost(judging: "Judging") -> str:
    numbers = judging.metrics()
    seconds = numbers.get("judge/latency_p50_s")
    if seconds is None:
        return ""
    read, wrote = (int(numbers[f"judge/{kind}_tokens"]) for kind in ("prompt", "completion"))
    tokens = f", {read} tokens read, {wrote} written" if read or wrote else ""
    return f": {seconds:.2f} s{tokens}"
