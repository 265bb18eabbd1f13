"""Reads JSONL records as examples: a prompt, and perhaps an answer and a reference."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.data.jsonl import check_text, each_line
from wavalign_fast.data.records import Example
from wavalign_fast.errors import UserError, one_line, shorten, shown
from wavalign_fast.recipes.dialogue.options import NO_TEMPLATE, Options
from wavalign_fast.recipes.dialogue.tokens import Tokens

logger = logging.getLogger(__name__)

PROMPTS = ("prompt", "messages", "prompt_ids")
ANSWERS = ("answer", "answer_ids")
REJECTED = ("rejected", "rejected_ids")
KEYS = ("id", *PROMPTS, *ANSWERS, *REJECTED, "reference")
AUDIO = ("audio", "audios")
ROLES = ("system", "user", "assistant")


class _TooLongError(ValueError):
    """The record is left out, as the options want it; nothing is wrong with it."""


def read_examples(path: str | Path, reader: "ExampleReader") -> tuple[Example, ...]:
    """Reads the examples of a file, and logs how many records were left out and why.

    Raises:
        UserError: a record cannot be used (with ``task.on_bad_record=stop``), or none can.
    """
    if not Path(path).is_file():  # ranks cannot share a pipe
        raise UserError(f"no such file: {path}")
    examples: list[Example] = []
    long: list[str] = []
    bad: list[str] = []
    for where, record in each_line(path):
        try:
            if isinstance(record, ValueError):
                raise record
            examples.append(reader.example(record, where))
        except _TooLongError as error:
            long.append(str(error))
        except ValueError as error:
            if reader.options.on_bad_record == "stop":
                raise UserError(
                    f"{one_line(error)}; task.on_bad_record=skip leaves such records out"
                ) from error
            bad.append(one_line(error))
    for kind, left_out in (("cannot be used", bad), ("are too long", long)):
        if left_out:
            logger.warning(
                "%s: %d of %d records %s and are left out; the first: %s",
                path, len(left_out), len(examples) + len(bad) + len(long), kind, left_out[0],
            )  # fmt: skip
    if not examples:
        raise UserError(f"{path}: no record is left, the first: {(bad + long)[0]}")
    _say_if_ids_repeat(path, examples)
    return tuple(examples)


def _say_if_ids_repeat(path: str | Path, examples: Sequence[Example]) -> None:
    name, count = Counter(example.id for example in examples).most_common(1)[0]
    if count > 1:
        logger.warning("%s: %d records have the id %s", path, count, shown(name))


class ExampleReader:
    """Turns records into examples.

    Args:
        max_new_tokens: maximum length of an answer that the model gives.

    Raises:
        UserError: the options name keys that no record has, or the model has no room for a prompt.
    """

    def __init__(self, tokens: Tokens, options: Options, *, max_new_tokens: int) -> None:
        room = tokens.positions - max_new_tokens
        if room < 1:
            raise UserError(
                f"rollout.max_new_tokens: {max_new_tokens} given, wanted less than the "
                f"{tokens.positions} positions of the model, which the prompt needs too"
            )
        self.tokens = tokens
        self.options = options
        self.longest_prompt = min(options.max_prompt, room)
        names = dict(options.keys or {})
        if unknown := [key for key in names if key not in KEYS]:
            raise UserError(
                f"task.keys: {shown(unknown[0])} given, wanted some of {', '.join(KEYS)}"
            )
        self.names = {key: names.get(key, key) for key in KEYS}

    def example(self, record: dict[str, Any], where: str) -> Example:
        """Returns the example; raises ``ValueError`` with its place, the value seen and wanted."""
        try:
            return self._example(record, where)
        except ValueError as error:
            kind = _TooLongError if isinstance(error, _TooLongError) else ValueError
            raise kind(f"{where}: {one_line(error)}") from error

    def _example(self, record: dict[str, Any], where: str) -> Example:
        for key in AUDIO:
            if record.get(key):
                raise ValueError(
                    f"{key} is {shown(record[key])}: sound is not read; wanted speech tokens in "
                    "the text, or prompt_ids"
                )
        given = {key: record.get(name) for key, name in self.names.items()}
        answer, rejected = self._one_of(given, ANSWERS), self._one_of(given, REJECTED)
        prompt = self._one_of(given, PROMPTS)
        if prompt is None:
            wanted = ", ".join(self.names[key] for key in PROMPTS)
            seen = shorten(", ".join(map(shown, record)) or "none", 200)
            raise ValueError(f"no prompt; keys seen: {seen}; wanted one of {wanted}")
        text, prompt_ids, inner = self._prompt(prompt, given[prompt])
        if inner is not None and answer is not None:
            raise ValueError(f"messages end with an answer, and {answer} is given; wanted one")
        if len(prompt_ids) > self.longest_prompt:
            raise _TooLongError(
                f"its prompt has {len(prompt_ids)} ids, wanted at most {self.longest_prompt} "
                f"(task.max_prompt {self.options.max_prompt}, and {self.tokens.positions} "
                "positions of the model for prompt and answer)"
            )
        answer_text = given["answer"] if answer == "answer" else inner
        answer_ids = self._answer(ANSWERS, given["answer_ids"], answer_text)
        rejected_ids = self._answer(REJECTED, given["rejected_ids"], given["rejected"])
        if rejected is not None and not answer_ids:
            raise ValueError(f"{self.names[rejected]} is given without an answer, wanted both")
        length = len(prompt_ids) + max(len(answer_ids), len(rejected_ids))
        if length > self.tokens.positions:
            raise _TooLongError(
                f"its prompt and answer have {length} ids, wanted at most {self.tokens.positions}, "
                "the positions of the model"
            )
        reference = given["reference"]
        if reference is not None and not isinstance(reference, str):
            raise ValueError(
                f"reference is {shown(reference)}, wanted text; a key of another name may hold "
                "anything, and the reward function gets it too"
            )
        return Example(
            id=str(given["id"]) if given["id"] is not None else where,
            prompt=text,
            prompt_ids=tuple(prompt_ids),
            reference=self._words(answer_text, answer_ids) if reference is None else reference,
            answer_ids=answer_ids,
            rejected_ids=rejected_ids,
            record=record,
        )

    def _words(self, text: str | None, ids: tuple[int, ...]) -> str:
        """Returns the text of an answer without its speech."""
        return self.tokens.text(ids) if text is None or self.tokens.speech(ids) else text

    def _one_of(self, given: dict[str, Any], keys: Sequence[str]) -> str | None:
        found = [key for key in keys if given[key] is not None]
        if len(found) > 1:
            names = " and ".join(self.names[key] for key in found)
            raise ValueError(f"{names} are given, wanted one of them")
        return found[0] if found else None

    def _prompt(self, kind: str, value: Any) -> tuple[str, list[int], str | None]:
        """Returns the prompt as text and as ids, and the answer if the messages end with one."""
        name = self.names[kind]
        if kind == "prompt_ids":
            ids = self._ids(name, value)
            return self.tokens.text(ids), ids, None
        if kind == "prompt":
            text = check_text(name, value)
            if self.options.chat_template == NO_TEMPLATE:
                return text, self.tokens.encode(text), None
            return text, self._chat([{"role": "user", "content": text}], name), None
        turns = _turns(name, value)
        inner = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
        asked = [turn["content"] for turn in turns if turn["role"] == "user"]
        if not asked or turns[-1]["role"] != "user":
            raise ValueError(f"{name} is {shown(value)}, wanted a turn of the user at its end")
        return asked[-1], self._chat(turns, name), inner

    def _chat(self, turns: list[dict[str, str]], name: str) -> list[int]:
        for number, turn in enumerate(turns):
            place = name if name != self.names["messages"] else f"{name}[{number}].content"
            self.tokens.encode_words(place, turn["content"])
        if self.options.system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.options.system}, *turns]
        return self.tokens.encode_chat(turns)

    def _answer(self, keys: tuple[str, str], ids: Any, text: Any) -> tuple[int, ...]:
        name = self.names[keys[text is None]]
        if ids is None and text is None:
            return ()
        if text is None:
            answer = self._ids(name, ids)
        else:
            answer = self.tokens.encode_words(name, check_text(name, text))
        if self.tokens.ends & {*answer[:-1]}:
            raise ValueError(f"{name} has an end-of-sequence id before its last id, wanted none")
        if answer[-1] not in self.tokens.ends:
            answer = [*answer, self.tokens.end_id]
        if len(answer) > self.options.max_answer:
            raise _TooLongError(
                f"its answer has {len(answer)} ids, wanted at most {self.options.max_answer}"
            )
        return tuple(answer)

    def _ids(self, name: str, value: Any) -> list[int]:
        size = self.tokens.layout.vocab_size
        if not isinstance(value, list) or not value:
            raise ValueError(f"{name} is {shown(value)}, wanted a list of ids that is not empty")
        for place, token in enumerate(value):
            if type(token) is not int or not 0 <= token < size:
                raise ValueError(
                    f"{name}[{place}] is {shown(token)}, wanted an id, 0 <= id < {size}"
                )
        return value


def _turns(name: str, value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {shown(value)}, wanted a list of turns that is not empty")
    for number, turn in enumerate(value):
        place = f"{name}[{number}]"
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            raise ValueError(f"{place} is {shown(turn)}, wanted an object with role and content")
        if turn["role"] not in ROLES:
            raise ValueError(
                f"{place}.role is {shown(turn['role'])}, wanted one of {', '.join(ROLES)}"
            )
        check_text(f"{place}.content", turn["content"])
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]
