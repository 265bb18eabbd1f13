"""Reads prompts from JSONL or CSV; each error names file and line."""

import ast
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wavalign_fast.data.dialogues.records import ROLES
from wavalign_fast.data.jsonl import check_text, each_line
from wavalign_fast.data.words import words
from wavalign_fast.errors import UserError, one_line, shown
from wavalign_fast.evaluation.choices import LETTERS
from wavalign_fast.evaluation.presets import FIELDS, PLAIN, PRESETS
from wavalign_fast.evaluation.prompts import TASKS, Prompt
from wavalign_fast.evaluation.voicebench_scores import read_scores


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How records are read."""

    preset: str | None = None
    keys: Mapping[str, str] | None = None
    """Names that the records have for fields, in place of the preset's."""
    task: str | None = None
    """Task of records that name none."""
    category: str | None = None
    """Category of records that name none; by default the preset's for the file, or its name."""
    language: str | None = None
    modality: str = "audio"
    """``text``: prompts are asked as text, and their sound is left out."""
    skip_bad: bool = False


def read_prompts(path: Path, reading: Reading) -> tuple[list[Prompt], list[str]]:
    """Returns the prompts of a file, and the errors of the lines that were left out.

    Raises:
        UserError: a line cannot be used (unless ``skip_bad``), or none can.
    """
    reader = _Reader(path, reading)
    prompts: dict[str, Prompt] = {}
    tasks: dict[str, str] = {}  # of the categories
    bad: list[str] = []
    for number, (where, record) in enumerate(_records(path)):
        try:
            if isinstance(record, ValueError):
                raise record
            prompt = reader.prompt(record, where, number)
            if prompt.id in prompts:
                first = prompts[prompt.id].where
                raise ValueError(
                    f"{where}: id {shown(prompt.id)} is that of {first} too, wanted another"
                )
            _check_task(tasks.setdefault(prompt.category, prompt.task), prompt)
            prompts[prompt.id] = prompt
        except ValueError as error:
            bad.append(one_line(error))
    if bad and not reading.skip_bad:
        more = f"; {len(bad)} records cannot be used" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}; --skip-bad leaves such records out")
    if not prompts:
        raise UserError(f"{path}: no record can be used; the first: {bad[0]}")
    return list(prompts.values()), bad


def _check_task(task: str, prompt: Prompt) -> None:
    if prompt.task != task:
        raise ValueError(
            f"{prompt.where}: task {prompt.task} in category {prompt.category}, which began with "
            f"{task}; wanted one, as their scores have no common scale: give it another category"
        )


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if path.suffix.lower() != ".csv":
        yield from each_line(path)
        return
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if None in row:
                yield where, ValueError(f"{where}: more cells than the first line has names")
            else:
                yield where, {key: value for key, value in row.items() if value not in (None, "")}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {one_line(error)}") from error


class _Reader:
    def __init__(self, path: Path, reading: Reading) -> None:
        self.path, self.reading = path, reading
        self.preset = PRESETS[reading.preset] if reading.preset else PLAIN
        given = dict(reading.keys or {})
        if unknown := [name for name in given if name not in FIELDS]:
            raise UserError(
                f"--field: {shown(unknown[0])} given, wanted one of {', '.join(FIELDS)}"
            )
        self.preset = replace(
            self.preset,
            keys={**self.preset.keys, **{name: (key,) for name, key in given.items()}},
            unique_ids=self.preset.unique_ids or "id" in given,
        )

    def prompt(self, record: dict[str, Any], where: str, number: int) -> Prompt:
        try:
            return self._prompt(record, where, number)
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}: {one_line(error)}") from error

    def _prompt(self, record: dict[str, Any], where: str, number: int) -> Prompt:
        given = {name: self._value(record, name) for name in FIELDS}
        category = self._category(given["category"])
        task = given["task"] or self.preset.tasks.get(category) or self.reading.task
        if task not in TASKS:
            raise ValueError(
                f"task is {shown(task)} in category {category}, wanted one of {', '.join(TASKS)}"
            )
        messages = _messages(given["messages"], given["prompt"])
        spoken = self.reading.modality == "audio"
        audios = self._audios("audio", given["audio"]) if spoken else ()
        sound = self._audios("response_audio", given["response_audio"])
        references = self._references(given["references"], given["reference"])
        choices = _choices(given["choices"])
        _check_references(task, references, choices)
        return Prompt(
            id=self._id(given["id"], category, number),
            task=task,
            category=category,
            messages=messages,
            audios=audios,
            references=references,
            choices=choices,
            language=_optional("language", given["language"]) or self.reading.language,
            rubric=_optional("rubric", given["rubric"]),
            instructions=_instructions(task, given["instruction_id_list"], given["kwargs"]),
            answer=self._answer(record),
            answer_score=None if given["score"] is None else read_scores(given["score"]),
            answer_audio=sound[0] if sound else None,
            source=record,
            where=where,
        )

    def _value(self, record: dict[str, Any], name: str) -> Any:
        found = (record[key] for key in self.preset.keys[name] if key in record)
        return next((value for value in found if value not in (None, "", [])), None)

    def _category(self, value: Any) -> str:
        if value is not None:
            # VStyle's "role_play/scenario" counts under its first part.
            return check_text("category", value).split("/")[0]
        found = self.reading.category or self.preset.category_of(self.path)
        if found is None and self.preset.tasks:
            raise ValueError(
                f"{self.path.name} is not named after a part of the benchmark; wanted --category "
                f"with one of {', '.join(self.preset.tasks)}"
            )
        return found or self.path.stem

    def _id(self, value: Any, category: str, number: int) -> str:
        if value is None or not self.preset.unique_ids:
            return f"{category}-{number}"
        if not isinstance(value, str | int):
            raise ValueError(f"id is {shown(value)}, wanted text or a number")
        return str(value)

    def _answer(self, record: dict[str, Any]) -> str | None:
        """Returns the answer that a record holds; an empty one is an answer too."""
        value = next((record[key] for key in self.preset.keys["response"] if key in record), None)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"response is {shown(value)}, wanted text")
        return value

    def _audios(self, key: str, value: Any) -> tuple[Path, ...]:
        names = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} is {shown(value)}, wanted the path of a WAV file, or several")
        paths = [self.path.parent / name for name in names]  # an absolute one stays itself
        if missing := [path for path in paths if not path.is_file()]:
            raise ValueError(f"{key}: no such file: {missing[0]}")
        return tuple(paths)

    def _references(self, several: Any, one: Any) -> tuple[str, ...]:
        value = one if several is None else several
        if isinstance(value, str):
            value = self._listed(value)
        elif isinstance(value, bool):
            value = ["yes" if value else "no"]
        elif isinstance(value, int | float):
            value = [str(value)]
        if value is None:
            return ()
        if not isinstance(value, list):
            raise ValueError(f"reference is {shown(value)}, wanted text or a list of texts")
        return tuple(check_text("reference", text) for text in value)

    def _listed(self, text: str) -> list[str]:
        """Returns the references in a text; a CSV cell may hold a list as Python writes it."""
        if self.preset.separator is None:
            return [text]
        if text.startswith("["):
            try:
                value = ast.literal_eval(text)
                return value if isinstance(value, list) else [text]
            except (ValueError, SyntaxError):
                return [text]
        return [part.strip() for part in text.split(self.preset.separator) if part.strip()]


def _messages(turns: Any, prompt: Any) -> tuple[tuple[str, str], ...]:
    if (turns is None) == (prompt is None):
        raise ValueError(f"{'no' if turns is None else 'both'} prompt and messages, wanted one")
    if turns is None:
        return (("user", check_text("prompt", prompt)),)
    if not isinstance(turns, list):
        raise ValueError(f"messages is {shown(turns)}, wanted a list of turns")
    found = []
    for number, turn in enumerate(turns):
        place = f"messages[{number}]"
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise ValueError(
                f"{place} is {shown(turn)}, wanted an object with content and a role of "
                f"{', '.join(ROLES)}"
            )
        found.append((turn["role"], check_text(f"{place}.content", turn.get("content"))))
    if found[-1][0] != "user":
        raise ValueError(f"messages end with a turn of {found[-1][0]}, wanted the user's")
    return tuple(found)


def _choices(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, dict):
        if list(value) != list(LETTERS[: len(value)]):
            raise ValueError(f"choices have the names {shown(list(value))}, wanted A, B, …")
        value = list(value.values())
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"choices is {shown(value)}, wanted a list of 2 to 26 texts")
    return tuple(check_text("choices", choice) for choice in value)


def _check_references(task: str, references: tuple[str, ...], choices: tuple[str, ...]) -> None:
    if task not in ("qa", "mcq", "bool"):
        return
    if not references:
        raise ValueError(f"no reference, wanted the right answer of a {task} record")
    letters = LETTERS[: len(choices) or len(LETTERS)]
    for text in references:
        if task == "qa" and not words(text):
            raise ValueError(f"reference is {shown(text)}, wanted a word or a number in it")
        bare = text.strip().strip("().").upper()
        if task == "mcq" and not (len(bare) == 1 and bare in letters):
            raise ValueError(f"reference is {shown(text)}, wanted a letter of {letters[0]} to "
                             f"{letters[-1]}")  # fmt: skip
        if task == "bool" and bare not in ("YES", "NO", "TRUE", "FALSE", "A", "B"):
            raise ValueError(f"reference is {shown(text)}, wanted yes, no, (a) or (b)")


def _instructions(
    task: str, names: Any, arguments: Any
) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
    if task != "ifeval":
        return ()
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"instruction_id_list is {shown(names)}, wanted a list of names")
    given: Sequence[Any] = [{}] * len(names) if arguments is None else arguments
    if isinstance(given, str):
        given = json.loads(given)
    if not isinstance(given, list) or len(given) != len(names):
        raise ValueError(f"kwargs is {shown(given)}, wanted a list of {len(names)} objects")
    if bad := [one for one in given if not isinstance(one, dict)]:
        raise ValueError(f"kwargs has {shown(bad[0])}, wanted an object")
    return tuple(
        (name, tuple(one.items())) for name, one in zip(names, given, strict=True)
    )  # fmt: skip


def _optional(name: str, value: Any) -> str | None:
    return None if value is None else check_text(name, value)
