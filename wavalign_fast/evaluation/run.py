"""Runs the stages of an evaluation in one directory, and writes what they come to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.evaluation.answering import (
    NOT_ASKED,
    Response,
    Sampling,
    Speaker,
    answers,
    given_answer,
)
from wavalign_fast.evaluation.hearing import agreement, heard
from wavalign_fast.evaluation.judging import Judge, Judged, Question, judged, key_of
from wavalign_fast.evaluation.outcome import Result, result, summary
from wavalign_fast.evaluation.prompts import SPEECH_TASKS, Prompt, file_digest
from wavalign_fast.evaluation.scoring import Rules, is_empty, needs_judge, score
from wavalign_fast.evaluation.speaking import Decoder, spoken
from wavalign_fast.evaluation.stages import (
    HEARD,
    RESPONSES,
    SCORES,
    WAVS,
    StageFile,
    Stages,
)
from wavalign_fast.evaluation.voicebench import write_voicebench
from wavalign_fast.rewards.spoken_words import Recogniser
from wavalign_fast.train.atomic_files import to_json, write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESULTS_FILE, REPORT_FILE = "results.jsonl", "report.json"
AT_ONCE = 16
"""Answers that are decoded in one call."""


class Asked(NamedTuple):
    """The model that is asked."""

    speaker: Speaker
    load: Callable[[], "PreTrainedModel"]
    weights: str
    """Digest of its weights."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is evaluated, and with what. A part that is ``None`` is left out."""

    directory: Path
    prompts: Sequence[Prompt]
    left_out: Sequence[str] = ()
    """Errors of records that cannot be used."""
    model: Asked | None
    """``None``: the answers come with the prompts."""
    sampling: Sampling
    rows: int
    codec: Decoder | None = None
    recogniser: Recogniser | None = None
    judge: Judge | None = None
    rules: Rules
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each stage: the options that its file depends on."""
    voicebench: str | None = None
    """Name of the model in files of VoiceBench's form; ``None`` writes none."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the report says of the run."""


class Progress(NamedTuple):
    """How far a stage is."""

    stage: str
    done: int
    total: int


def run(plan: Plan) -> Iterator[Progress]:
    """Runs what is not done yet, stage by stage, and yields how far it is.

    Raises:
        UserError: an earlier call made a stage with other options, or a prompt of that name asked
            something else.
    """
    stages = Stages(plan.directory)
    for stage, settings in plan.settings.items():
        stages.use(stage, settings)
    files = _Files(plan.directory)
    yield from _ask(plan, files)
    responses = files.responses(plan.prompts)
    if plan.codec is not None:
        coded = [response for response in responses.values() if response.codes]
        work = spoken(plan.codec, coded, plan.directory, files.wavs, at_once=AT_ONCE)
        yield from _counted(WAVS, work, len(coded))
    sounds = files.sounds(plan.prompts, responses)
    if plan.recogniser is not None:
        heard_now = {name: path for name, path in sounds.items() if path is not None}
        work = heard(plan.recogniser, heard_now, files.heard)
        yield from _counted(HEARD, work, len(heard_now))
    questions = _questions(plan, responses, sounds)
    if plan.judge is not None and questions:
        work = judged(plan.judge, list(questions.values()), files.scores)
        yield from _counted(SCORES, work, len(questions))
    results = _results(plan, files, responses, sounds, questions)
    _write(plan, results, files.damaged, stages.settings)


def _counted(stage: str, work: Iterator[int], total: int) -> Iterator[Progress]:
    done = 0
    for more in work:
        done += more
        yield Progress(stage, done, total)


def _ask(plan: Plan, files: "_Files") -> Iterator[Progress]:
    known = files.responses(plan.prompts)
    wanted = [prompt for prompt in plan.prompts if prompt.id not in known]
    if not wanted:
        return
    done = len(known)
    if plan.model is None:
        files.answers.append(given_answer(prompt).as_record() for prompt in wanted)
        yield Progress(RESPONSES, done + len(wanted), len(plan.prompts))
        return
    speaker, load, weights = plan.model
    for part in answers(speaker, load, wanted, plan.sampling, rows=plan.rows, weights=weights):
        files.answers.append(response.as_record() for response in part)
        done += len(part)
        yield Progress(RESPONSES, done, len(plan.prompts))


class _Files:
    """The files of the stages, read anew at each call."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers = StageFile(directory, RESPONSES)
        self.wavs = StageFile(directory, WAVS, keys=("id", "asked"))
        self.heard = StageFile(directory, HEARD, keys=("id", "sound"))
        self.scores = StageFile(directory, SCORES, keys=("id", "key"))

    @property
    def damaged(self) -> list[str]:
        """What is wrong with lines of the files, as they were last read."""
        files = (self.answers, self.wavs, self.heard, self.scores)
        return [line for file in files for line in file.damaged]

    def responses(self, prompts: Sequence[Prompt]) -> dict[str, Response]:
        """Returns the answers of the prompts that have one, by id."""
        records = self.answers.read()
        found = {}
        for prompt in prompts:
            record = records.get((prompt.id,))
            if record is None:
                continue
            try:
                response = Response.read(record)
            except ValueError as error:
                self.answers.damaged.append(f"{self.answers.path}: {prompt.id}: {one_line(error)}")
                continue
            if response.asked != prompt.asked:
                raise UserError(
                    f"{prompt.where}: the record {prompt.id} asks something else than the one that "
                    f"{self.answers.path} answers; wanted the same, another --output, or --redo "
                    f"{RESPONSES}"
                )
            found[prompt.id] = response
        return found

    def sounds(
        self, prompts: Sequence[Prompt], responses: Mapping[str, Response]
    ) -> dict[str, Path | None]:
        """Returns the WAV file of each answer, by id."""
        records = self.wavs.read()
        found: dict[str, Path | None] = {}
        for prompt in prompts:
            response = responses[prompt.id]
            name = response.wav or records.get((prompt.id, prompt.asked), {}).get("wav")
            path = None if name is None else self.directory / name
            found[prompt.id] = path if path is not None and path.is_file() else None
        return found


def _questions(
    plan: Plan, responses: Mapping[str, Response], sounds: Mapping[str, Path | None]
) -> dict[str, Question]:
    """Returns what a judge is asked, by id: not what failed, nor speech without a sound."""
    found = {}
    for prompt in plan.prompts:
        response, sound = responses[prompt.id], sounds[prompt.id]
        silent = prompt.task in SPEECH_TASKS and sound is None
        empty = is_empty(prompt, response, has_sound=sound is not None)
        if needs_judge(prompt, plan.rules) and not (silent or empty or response.stop == NOT_ASKED):
            found[prompt.id] = Question(prompt, response, sound)
    return found


def _results(
    plan: Plan,
    files: _Files,
    responses: Mapping[str, Response],
    sounds: Mapping[str, Path | None],
    questions: Mapping[str, Question],
) -> list[Result]:
    scores, hearings, wavs = files.scores.read(), files.heard.read(), files.wavs.read()
    results = []
    for prompt in plan.prompts:
        response, sound = responses[prompt.id], sounds[prompt.id]
        judgement = None
        if prompt.id in questions:
            line = scores.get((prompt.id, key_of(questions[prompt.id])))
            judgement = None if line is None else Judged(line.get("score"), line.get("cause"))
            if judgement is None and prompt.answer_score is not None and plan.model is None:
                judgement = Judged(prompt.answer_score)
        elif prompt.task in SPEECH_TASKS and sound is None:
            line = wavs.get((prompt.id, prompt.asked), {})
            judgement = Judged(None, line.get("cause") or "no sound (--codec)")
        text = None
        if sound is not None:
            text = hearings.get((prompt.id, file_digest(sound)), {}).get("text")
        results.append(
            result(
                prompt,
                response,
                score(prompt, response, judgement, plan.rules, has_sound=sound is not None),
                wav=None if sound is None else _named(sound, plan.directory),
                heard=text,
                agreement=None if text is None else agreement(response.text, text),
            )
        )
    return results


def _named(sound: Path, directory: Path) -> str:
    """Returns the name of a sound file, relative to the evaluation if it lies in it."""
    inside = sound.is_relative_to(directory)
    return sound.relative_to(directory).as_posix() if inside else str(sound)


def _write(
    plan: Plan,
    results: Sequence[Result],
    damaged: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes results and report; the settings are those of all stages, of earlier calls too."""
    lines = [to_json(one.as_record()) + "\n" for one in results]
    write_text(plan.directory / RESULTS_FILE, "".join(lines))
    report = {
        "about": dict(plan.about),
        "settings": dict(settings),
        "notes": [*plan.left_out, *damaged],
        **summary(results),
    }
    write_json(plan.directory / REPORT_FILE, report)
    if plan.voicebench is not None:
        prompts = {prompt.id: prompt for prompt in plan.prompts}
        write_voicebench(plan.directory, plan.voicebench, prompts, results)
