"""Judges answers by a model behind an endpoint (``rewards/judge``), with a rubric for each task."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.data.dialogues.records import AUDIO_TAG
from wavalign_fast.errors import shorten
from wavalign_fast.evaluation.judging import Judged, Question, scale_of
from wavalign_fast.evaluation.prompts import SPEECH_TASKS, Prompt, digest
from wavalign_fast.rewards.judge import Judge, JudgeError, Judgement, JudgeRequest
from wavalign_fast.rewards.judge.options import JudgeOptions
from wavalign_fast.rewards.judge.rubrics import HEAD, Rubric
from wavalign_fast.speech.wave_files import as_wave_bytes

WINDOW = 64
"""Judgements over which the share of missing ones is taken."""
SETTINGS = (
    "address", "model", "text_model", "mode", "semantic_weight", "acoustic_weight", "audio",
    "samples", "temperature", "max_tokens", "body",
)  # fmt: skip

"""Options on which scores depend."""

OPEN = """\
score: how well the words of the reply answer what the user asked. The voice does not count.
5: answers exactly what was asked, correctly, completely and without detours.
4: correct and relevant, with a small gap or a needless part.
3: relevant and mostly correct, but shallow, vague or much too long.
2: touches the subject, but an important part is wrong or missing.
1: off the subject, wrong, or no answer."""
QA = """\
score: whether the reply gives the right answer. The question ends with the reference answers.
1: the reply says the same as one of the reference answers, in whatever words.
0: it says something else, contradicts itself, or does not answer."""
STYLE = """\
score: whether the reply is spoken as the user wants it. Go through three questions in this order.
First, the words: does the reply say what was asked for? If it does not, the score is 1.
Then, the style: does the voice have the manner that was asked for or that fits, such as age,
feeling, pace, volume, role or sympathy? Not at all is 2, in part is 3.
Last, if both are right, how natural it sounds: 4 if something in it is artificial, else 5."""
TEXTS = {"open": OPEN, "qa": QA, "style": STYLE}


class EndpointJudge:
    """Asks a model behind an endpoint; text and sound are judged by ``text_model`` and ``model``.

    A record's own rubric goes before a rubric file of the options, and that before ours. All
    judgements of a call are handed over before a share of missing ones above ``max_missing`` ends
    the run, so that none is lost.

    Args:
        cache: directory for judgements as they come, unless the options name one. They are written
            to ``scores.jsonl`` rubric by rubric, so a killed process may have more than that.

    Raises:
        JudgeError: no address, no such key, or a package is missing.
    """

    def __init__(self, options: JudgeOptions, *, cache: Path) -> None:
        self.options = options
        self.at_once = 2 * options.concurrency
        # It would keep what it has of a step when too much is missing; here that is written first.
        changed = {"max_missing": 1.0, "cache": options.cache or cache}
        kept = options.model_copy(update=changed)
        self._sound = Judge(kept)
        text = {"audio": "none", "model": options.text_model or options.model, "mode": "holistic"}
        self._text = Judge(kept.model_copy(update=text))
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def settings(self) -> dict[str, Any]:
        """Returns what the scores depend on."""
        chosen = {f"judge.{name}": getattr(self.options, name) for name in SETTINGS}
        rubrics = [rubric.text for rubric in self._sound.rubrics]
        return {**chosen, "judge.rubric": digest([rubrics, TEXTS])}

    def __call__(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judged]]:
        """Asks all questions at once, and yields the judgements rubric by rubric."""
        groups: dict[tuple[bool, tuple[Rubric, ...] | None], list[int]] = {}
        for place, question in enumerate(questions):
            spoken = question.prompt.task in SPEECH_TASKS
            groups.setdefault((spoken, self._rubrics(question.prompt)), []).append(place)
        started = []
        for (spoken, rubrics), places in groups.items():
            judge = self._sound if spoken else self._text
            requests = [_request(questions[place]) for place in places]
            started.append((places, judge.start(requests, rubrics=rubrics)))
        for places, judging in started:
            for place, found in zip(places, judging.result(), strict=True):
                self._recent.append(found.score is None)
                yield place, _judged(found)
        self._check_share()

    def close(self) -> None:
        """Gives up what is under way."""
        self._sound.close()
        self._text.close()

    def _rubrics(self, prompt: Prompt) -> tuple[Rubric, ...] | None:
        """Returns the rubric of a prompt; ``None`` for those of the options."""
        low, high = scale_of(prompt.task)
        if prompt.rubric is not None:
            return (Rubric(prompt.rubric, low=low, high=high),)
        own = prompt.task == "spoken" or (self.options.rubric is not None and prompt.task != "qa")
        if own and prompt.task in SPEECH_TASKS:
            return None
        if own:
            return tuple(self._text.rubrics)
        return (Rubric(f"{HEAD}\n\n{TEXTS[prompt.task]}", low=low, high=high),)

    def _check_share(self) -> None:
        share = sum(self._recent) / max(1, len(self._recent))
        if share > self.options.max_missing:
            raise JudgeError(
                f"{self._sound.name}: {sum(self._recent)} of the last {len(self._recent)} scores "
                f"are missing, wanted a share of at most {self.options.max_missing:g} "
                "(max_missing); scores.jsonl has the causes, and the same command asks again"
            )


def _request(question: Question) -> JudgeRequest:
    prompt = question.prompt
    asked = prompt.question
    if len(prompt.messages) > 1:
        asked = "\n".join(f"{role}: {content}" for role, content in prompt.messages)
    asked = asked.replace(AUDIO_TAG, "").strip()
    if prompt.task == "qa":
        asked = f"{asked}\n\nReference answers: {'; '.join(prompt.references)}"
    spoken = prompt.task in SPEECH_TASKS and question.wav is not None
    wav = as_wave_bytes(question.wav) if spoken and question.wav is not None else None
    return JudgeRequest(question=asked, transcript=question.response.text, wav=wav)


def _judged(found: Judgement) -> Judged:
    more = {"scores": dict(found.scores), "justification": found.justification}
    if found.score is None:
        more = {"detail": shorten(found.detail, 300)}
    return Judged(found.score, found.cause, more)
