"""Writes answers as VoiceBench's own harness keeps them, so that its ``evaluate.py`` reads them.

Source: https://github.com/MatthewCYM/VoiceBench: ``main.py``, ``api_judge.py``, ``evaluate.py``. A
line is the record without its audio, with ``response``. A judged line has ``score`` too, a list of
texts: 1 to 5 for open answers, Yes or No for answers with a reference.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from wavalign_fast.evaluation.outcome import Result, by_category
from wavalign_fast.evaluation.prompts import Prompt
from wavalign_fast.train.atomic_files import to_json, write_text

FOLDER = "voicebench"
JUDGED = frozenset(("open", "qa"))
"""Tasks whose answers its harness has judged."""
SAMPLES = 3
"""Judgements that its files have for an answer."""


def write_voicebench(
    directory: Path, model: str, prompts: Mapping[str, Prompt], results: Sequence[Result]
) -> list[Path]:
    """Writes ``MODEL-PART-test-MODALITY.jsonl`` for each part, and ``result-…`` where it is judged.

    Our one judgement stands three times, as the harness asks for three. An answer whose judgement
    is missing is left out of the judged file: the harness knows no missing ones.
    """
    paths = []
    for category, group in by_category(results).items():
        spoken = any(prompts[one.id].audios for one in group)
        name = f"{model}-{category}-test-{'audio' if spoken else 'text'}.jsonl"
        lines = {one.id: {**_without_audio(prompts[one.id]), "response": one.text} for one in group}
        paths.append(_write(directory / FOLDER / name, list(lines.values())))
        if group[0].task in JUDGED:
            judged = [
                {**lines[one.id], "score": [_score(one)] * SAMPLES}
                for one in group
                if one.score is not None
            ]
            paths.append(_write(directory / FOLDER / f"result-{name}", judged))
    return paths


def _without_audio(prompt: Prompt) -> dict[str, object]:
    return {key: value for key, value in prompt.source.items() if key != "audio"}


def _score(one: Result) -> str:
    assert one.score is not None
    return f"{one.score:g}" if one.task == "open" else ("Yes" if one.score == 1 else "No")


def _write(path: Path, lines: Sequence[Mapping[str, object]]) -> Path:
    write_text(path, "".join(to_json(line) + "\n" for line in lines))
    return path
