"""The judge as one of the rewards of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from wavalign_fast.rewards.judge.judge import Judge, Judging
from wavalign_fast.rewards.judge.requests import JudgeRequest
from wavalign_fast.speech.wave_files import wave_bytes


class JudgeReward:
    """Asks a judge about answers; see docs/judge.md for their keys."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def start(self, answers: Sequence[Mapping[str, Any]]) -> "JudgePending":
        """Starts the requests and returns at once."""
        return JudgePending(self.judge.start([request_of(answer) for answer in answers]))


def request_of(answer: Mapping[str, Any]) -> JudgeRequest:
    """Returns what the judge gets of an answer: the question, the text, and the sound if any."""
    wave = answer.get("wave")
    return JudgeRequest(
        question=answer["prompt"],
        transcript=answer["text"],
        wav=None if wave is None else wave_bytes(wave, answer["sample_rate"]),
    )


class JudgePending:
    """Judgements that are under way, as rewards."""

    def __init__(self, judging: Judging) -> None:
        self._judging = judging

    def result(self) -> list[float | None]:
        """Waits for the scores; ``None`` is a missing one.

        Raises:
            JudgeError: the judge cannot be asked, or too large a share of scores is missing.
        """
        return [judged.score for judged in self._judging.result()]

    def metrics(self) -> dict[str, float]:
        """Returns the counts of the judge, and for each of several scores its sum and count."""
        found = self._judging.metrics()
        for judged in self._judging.result():
            if len(judged.scores) > 1:
                for axis, score in judged.scores.items():
                    for name, value in ((f"judge/{axis}_sum", score), (f"judge/{axis}_count", 1.0)):
                        found[name] = found.get(name, 0.0) + value
        return found
