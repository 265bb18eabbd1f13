"""Makes the rewards of a run from their options."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from wavalign_fast.errors import naming
from wavalign_fast.rewards import options as kinds
from wavalign_fast.rewards.combined import Answers, CombinedReward, Part, Pending, Rewards, at_once
from wavalign_fast.rewards.function import RewardFunction

if TYPE_CHECKING:
    from wavalign_fast.rewards.judge.options import JudgeOptions

Start = Callable[[Answers], Pending]

JUDGE_RANGE = (1.0, 5.0)
SOUND = ("wave", "sample_rate")
"""Keys of an answer that a function in another process does not get."""


def build_rewards(
    parts: Sequence[kinds.PartOptions],
    judge: "JudgeOptions",
    *,
    scale: tuple[float, float],
    key: str = "task.rewards",
) -> CombinedReward:
    """Makes the rewards of ``options.read_parts``; loads models and starts the judge's thread.

    Args:
        scale: the lowest and the highest reward in training, ``loss.gate.scale``.
        key: what errors call the list.

    Raises:
        UserError: a part cannot be made.
    """
    made = []
    for place, options in enumerate(parts):
        with naming(f"{key}[{place}]"):
            low, high = range_of(options)
            made.append(
                Part(
                    name=options.name or options.kind,
                    start=start_of(options, judge),
                    low=low,
                    high=high,
                    weight=options.weight,
                    when_missing=options.when_missing,
                    veto=isinstance(options, kinds.WithVeto) and options.veto,
                )
            )
    with naming(key):
        return CombinedReward(made, scale=scale)


def range_of(options: kinds.PartOptions) -> tuple[float, float]:
    """Returns the lowest and the highest reward of a part."""
    if isinstance(options, kinds.JudgePart):
        return JUDGE_RANGE
    if isinstance(options, kinds.ClassifierPart | kinds.FunctionPart):
        return options.range
    return (0.0, 1.0)


def start_of(options: kinds.PartOptions, judge: "JudgeOptions") -> Start:
    """Returns what starts a part on answers."""
    if isinstance(options, kinds.JudgePart):
        from wavalign_fast.rewards.judge.judge import Judge
        from wavalign_fast.rewards.judge.part import JudgeReward

        with naming("task.judge"):
            return JudgeReward(Judge(judge)).start
    if isinstance(options, kinds.FunctionPart):
        return _Function(options).start
    return at_once(_local(options))


def _local(options: kinds.PartOptions) -> Callable[[Answers], Rewards]:
    from wavalign_fast.rewards import guards, text_rewards

    own = options.model_dump(exclude={"kind", "name", "weight", "when_missing", "veto", "range"})
    if isinstance(options, kinds.WerPart):
        from wavalign_fast.rewards.spoken_words import SpokenWords
        from wavalign_fast.rewards.user_code import load_function

        return SpokenWords(load_function("recogniser", options.recogniser))
    if isinstance(options, kinds.ClassifierPart):
        from wavalign_fast.rewards.classifier import ClassifierReward

        directory = own.pop("path")
        return _within(options.range, ClassifierReward(directory, **own))
    plain: dict[type[kinds.PartOptions], Callable[..., Callable[[Answers], Rewards]]] = {
        kinds.ExactPart: text_rewards.ExactText,
        kinds.NumericPart: text_rewards.NumericText,
        kinds.RegexPart: text_rewards.PatternText,
        kinds.LengthPart: guards.Length,
        kinds.EndedPart: guards.Ended,
    }
    return plain[type(options)](**own)


def _within(
    bounds: tuple[float, float], function: Callable[[Answers], Rewards]
) -> Callable[[Answers], Rewards]:
    low, high = bounds
    return lambda answers: [
        None if value is None else min(max(value, low), high) for value in function(answers)
    ]


class _Function:
    """The user's function, called beside the trainer: it works in another process."""

    def __init__(self, options: kinds.FunctionPart) -> None:
        self._function = RewardFunction(
            options.function, timeout_s=options.timeout_s, arguments=options.arguments
        )
        self._function.load()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward")

    def start(self, answers: Answers) -> Pending:
        plain = [{k: v for k, v in answer.items() if k not in SOUND} for answer in answers]
        return _Called(self._thread.submit(self._function, plain))


class _Called:
    """A call of the user's function that is under way."""

    def __init__(self, call: "Future[Any]") -> None:
        self._call = call

    def result(self) -> Rewards:
        return list(self._call.result())

    def metrics(self) -> dict[str, float]:
        return {}
