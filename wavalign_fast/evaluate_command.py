"""``wavalign-fast evaluate``: answers, speech, scores and a report of a model on prompts."""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.codec_arguments import add_codec_arguments, codec_options
from wavalign_fast.errors import UserError, naming, shown, user_input

if TYPE_CHECKING:
    from rich.console import Console

    from wavalign_fast.evaluation.endpoint_judge import EndpointJudge
    from wavalign_fast.evaluation.judging import FunctionJudge
    from wavalign_fast.evaluation.run import Asked, Plan, Progress
    from wavalign_fast.evaluation.talk import Talk
    from wavalign_fast.speech.codec import SpeechCodec

DTYPES = ("float32", "bfloat16", "float16")
PRESETS = ("openaudiobench", "voicebench", "vstyle")
TASKS = ("open", "qa", "mcq", "bool", "ifeval", "refusal", "style", "spoken")
STAGES = ("responses", "wavs", "heard", "scores")


def add_evaluate(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="ask a model prompts, score its answers, and write a report",
        description="Each stage is kept in a file of the output directory. The same command again "
        "goes on where it was stopped; it asks neither model nor judge twice.",
    )
    parser.add_argument(
        "prompts", metavar="PROMPTS.jsonl", type=Path, nargs="?",
        help="records with id, task, prompt or messages, and what their task needs; or a CSV file",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, help="model directory, or the directory of a run")
    parser.add_argument(
        "--answered", action="store_true",
        help="take the answers from the records (response), in place of a model",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: evaluations/MODEL-PROMPTS"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("RUN_A", "RUN_B"),
        help="compare two evaluations of the same prompts instead: B − A, prompt by prompt",
    )  # fmt: skip
    parser.add_argument(
        "--redo", choices=STAGES, help="remove the file of this stage and of those after it first"
    )
    _add_reading(parser)
    _add_sampling(parser)
    _add_talk(parser)
    _add_scoring(parser)
    parser.set_defaults(command=evaluate)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the records")
    group.add_argument("--preset", choices=PRESETS, help="fields and tasks of a known benchmark")
    group.add_argument(
        "--field", action="append", metavar="NAME=KEY", default=[],
        help="the key that your records have for a field, e.g. prompt=question",
    )  # fmt: skip
    group.add_argument("--task", choices=TASKS, help="task of records that name none")
    group.add_argument(
        "--category", help="category of records that name none; default: the file's name"
    )
    group.add_argument("--language", help="language of records that name none, e.g. en")
    group.add_argument(
        "--modality", choices=("audio", "text"), default="audio",
        help="text: ask in text what has sound too; default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--skip-bad", action="store_true", help="leave out records that cannot be used"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the answers")
    group.add_argument(
        "--max-new-tokens", type=_count, default=1024, metavar="N", help="default: %(default)s"
    )
    group.add_argument("--temperature", type=_temperature, default=0.0, help="default: 0, greedy")
    group.add_argument("--seed", type=int, default=0, help="of answers that are not greedy")
    group.add_argument(
        "--mtp", action="store_true",
        help="greedily by turns of the model and its MTP layers (VITA-Audio Balance and Boost)",
    )  # fmt: skip
    group.add_argument(
        "--rows", type=_count, default=8, metavar="N",
        help="prompts that are asked at once; default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--chat-template", default="tokenizer", metavar="FILE",
        help="a Jinja file; default: the template of the model directory",
    )  # fmt: skip
    group.add_argument(
        "--speech", default="<|audio_0|>", metavar="TOKEN",
        help="the speech token of number 0, or none; default: %(default)s",
    )  # fmt: skip
    group.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as saved")
    group.add_argument("--device", default=None, help="default: a GPU if there is one")


def _add_talk(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "the prompts of a family", "By default as the model was trained, where its directory tells."
    )
    group.add_argument(
        "--family", metavar="NAME | FILE.py",
        help="family of the model, or none; default: the one that its files tell",
    )  # fmt: skip
    group.add_argument(
        "--system", help='system message of prompts that have none of their own; "" for none'
    )
    group.add_argument(
        "--ratio", type=_ratio, metavar="T,A,...",
        help="sizes of text and speech chunks of spoken turns, the last pair repeats, e.g. 1,4",
    )  # fmt: skip
    group.add_argument(
        "--prompt-style", choices=("row", "release"),
        help="row: as the recipe trains; release: as the family's published code; default: row",
    )  # fmt: skip
    group.add_argument(
        "--channel", type=_channel, metavar="mean | N",
        help="channel of sound with several, from 0, or their mean; default: mean",
    )  # fmt: skip


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speech and scores")
    add_codec_arguments(group)
    group.add_argument(
        "--asr", metavar="FILE.py:FUNCTION",
        help="speech recogniser: gets a wave, float32 [N], and its rate, returns text",
    )  # fmt: skip
    group.add_argument(
        "--judge", metavar="FILE.yaml | FILE.py:FUNCTION",
        help="judge of open, style and spoken answers: a config with the group judge (an endpoint, "
        "see docs/judge.md), or a function that gets a list of answers and returns scores",
    )  # fmt: skip
    group.add_argument(
        "--judge-timeout", type=_seconds, default=300.0, metavar="S",
        help="seconds that one call of the function may take; default: %(default)g",
    )  # fmt: skip
    group.add_argument(
        "--qa", choices=("words", "judge"), default="words",
        help="qa is right if a reference's words stand in the answer, or as the judge says",
    )  # fmt: skip
    group.add_argument(
        "--ifeval-registry", metavar="FILE.py:DICT",
        help="instructions of IFEval: a dict from name to class, as INSTRUCTION_DICT of its code",
    )  # fmt: skip


def evaluate(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.compare:
        return _compare(args)
    if args.prompts is None:
        args.parser.error("PROMPTS.jsonl is missing, wanted a file of prompts")
    if (args.model is None) != args.answered:
        seen = "neither --model nor --answered" if args.model is None else "both"
        args.parser.error(f"{seen} given, wanted one")
    from wavalign_fast.evaluation.stages import Stages
    from wavalign_fast.train.directory_lock import locked

    output = args.output or Path("evaluations") / _name(args)
    with locked([output]):
        if args.redo:
            Stages(output).redo(args.redo)
        plan = _plan(args, output)
        try:
            with user_input("evaluate"):
                _run(plan)
        finally:
            close = getattr(plan.judge, "close", None)
            if close is not None:
                close()
    return 0


def _compare(args: argparse.Namespace) -> int:
    if args.prompts is not None or args.model is not None or args.answered:
        args.parser.error("--compare compares what is done; prompts, model and answers given too")
    from wavalign_fast.evaluation.comparison import compare, write_comparison
    from wavalign_fast.evaluation.comparison_page import write_comparison_page
    from wavalign_fast.evaluation.table import print_comparison

    first, second = args.compare
    names = [path.resolve().name for path in args.compare]
    output = args.output or Path("evaluations") / f"{names[1]}-against-{names[0]}"
    with user_input("evaluate"):
        found = compare(first, second)
        write_comparison(output, found)
        print_comparison(found, _console())
        print(f"report: {write_comparison_page(output, found)}")
    return 0


def _name(args: argparse.Namespace) -> str:
    return f"{_model_name(args)}-{args.prompts.stem}"


def _model_name(args: argparse.Namespace) -> str:
    return "given" if args.model is None else args.model.resolve().name


def _run(plan: "Plan") -> None:
    from wavalign_fast.evaluation.page import write_page
    from wavalign_fast.evaluation.run import run
    from wavalign_fast.evaluation.table import print_table

    _show(run(plan))
    print_table(plan.directory, _console())
    print(f"report: {write_page(plan.directory)}")


def _console() -> "Console":
    """Returns the output; into a file or a pipe, tables have the width that they need."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


def _show(progress: Iterable["Progress"]) -> None:
    """Works the stages off."""
    from wavalign_fast.progress_bars import progress_bars

    with progress_bars() as show:
        for stage, done, total in progress:
            show(stage, done, total)


def _plan(args: argparse.Namespace, output: Path) -> "Plan":
    """Returns what the arguments ask for. The user's functions are loaded before any work."""
    from wavalign_fast.evaluation.answering import Sampling
    from wavalign_fast.evaluation.read_prompts import Reading, read_prompts
    from wavalign_fast.evaluation.run import Plan
    from wavalign_fast.evaluation.scoring import Rules
    from wavalign_fast.rewards.user_code import load_function, load_registry

    reading = Reading(
        preset=args.preset, keys=_fields(args.field), task=args.task, category=args.category,
        language=args.language, modality=args.modality, skip_bad=args.skip_bad,
    )  # fmt: skip
    prompts, left_out = read_prompts(args.prompts, reading)
    registry = args.ifeval_registry
    rules = Rules(
        registry=None if registry is None else load_registry("--ifeval-registry", registry),
        judged_qa=args.qa == "judge",
    )
    recogniser = None if args.asr is None else load_function("--asr", args.asr)
    sampling = Sampling(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed
    )
    judge = None if args.judge is None else _judge(args, output)
    talk = _talk(args)
    codec = None if args.codec is None else _codec(args, talk)
    model, answers = _model(args, output, codec, talk)
    if model is not None:
        answers |= _flags(args, "max_new_tokens", "temperature", "seed")
    # A part that is left out now says nothing about the file that it made before.
    settings = {"responses": answers}
    if codec is not None:
        settings["wavs"] = {"--codec": codec_options(args), "codec": codec.identity}
    if recogniser is not None:
        settings["heard"] = _flags(args, "asr")
    if judge is not None:
        settings["scores"] = judge.settings()
    about = {"prompts": str(args.prompts), "model": str(args.model or "answers of the records")}
    return Plan(
        directory=output, prompts=prompts, left_out=left_out, model=model, sampling=sampling,
        rows=args.rows, codec=codec, recogniser=recogniser, judge=judge, rules=rules,
        settings=settings,
        about=about, voicebench=_model_name(args) if args.preset == "voicebench" else None,
    )  # fmt: skip


def _judge(args: argparse.Namespace, output: Path) -> "FunctionJudge | EndpointJudge":
    from wavalign_fast.evaluation.judging import FunctionJudge

    if args.judge.endswith((".yaml", ".yml")):
        from wavalign_fast.config.layers import group_from_file
        from wavalign_fast.evaluation.endpoint_judge import EndpointJudge
        from wavalign_fast.rewards.judge.options import JudgeOptions

        with naming("--judge"):
            options = group_from_file(Path(args.judge), "judge", JudgeOptions)
            return EndpointJudge(options, cache=output / "judgements")
    judge = FunctionJudge(args.judge, timeout_s=args.judge_timeout)
    judge.load()
    return judge


def _talk(args: argparse.Namespace) -> "Talk":
    from wavalign_fast.evaluation.talk import Talk

    talk = Talk(
        system=args.system, family=args.family, ratio=args.ratio, prompt_style=args.prompt_style,
        channel=args.channel,
    )  # fmt: skip
    if args.model is not None:
        return talk.or_as_trained(args.model.expanduser())
    talk.check_unsaid("answers of the records")
    return talk


def _codec(args: argparse.Namespace, talk: "Talk") -> "SpeechCodec":
    from wavalign_fast.speech.codecs import open_codec_of_channel

    with naming("--codec"):
        channel = "mean" if talk.channel is None else talk.channel
        return open_codec_of_channel(codec_options(args), channel)


def _model(
    args: argparse.Namespace, output: Path, codec: "SpeechCodec | None", talk: "Talk"
) -> "tuple[Asked | None, dict[str, Any]]":
    if args.answered:
        return None, {"--answered": True}
    from wavalign_fast.evaluation.opening import Opening, open_model
    from wavalign_fast.train_command import quiet_libraries

    quiet_libraries()
    if args.mtp and args.temperature:
        raise UserError(f"--mtp: --temperature {args.temperature:g} given, wanted 0, greedy")
    opening = Opening(
        directory=args.model.expanduser(), talk=talk, chat_template=args.chat_template,
        speech=args.speech, dtype=args.dtype, device=args.device, codec=codec, mtp=args.mtp,
    )  # fmt: skip
    return open_model(opening, cache=output)


def _flags(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns options by the names that the user writes."""
    return {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}


def _fields(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, key = text.partition("=")
        if not equals or not key:
            raise UserError(f"--field: {shown(text)} given, wanted NAME=KEY, e.g. prompt=question")
        found[name] = key
    return found


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted a whole number >= 1")
    return value


def _ratio(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if len(sizes) % 2 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} given, wanted pairs of a text and a speech size, e.g. 1,4"
        )
    return sizes


def _channel(text: str) -> int | str:
    if text != "mean" and not (text.isascii() and text.isdecimal() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted mean or a number from 0")
    return text if text == "mean" else int(text)


def _temperature(text: str) -> float:
    return _number(text, least=0.0)


def _seconds(text: str) -> float:
    return _number(text, least=1e-3)


def _number(text: str, *, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted a number >= {least:g}")
    return value
