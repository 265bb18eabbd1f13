"""Turns dialogues into examples: prompts and answers as ids of the family."""

import logging
from collections.abc import Sequence
from pathlib import Path

from wavalign_fast.data.dialogues.read import Dialogues, Drop, read_dialogues
from wavalign_fast.data.dialogues.records import Dialogue
from wavalign_fast.data.dialogues.schemas import ReadOptions
from wavalign_fast.data.interleave import RatioError
from wavalign_fast.data.records import Example
from wavalign_fast.errors import CacheError, KeyedError, UserError, one_line
from wavalign_fast.models.families.sounds import Sounds
from wavalign_fast.recipes.wavalign.options import Options, Paths
from wavalign_fast.recipes.wavalign.speech import NoCodecError
from wavalign_fast.recipes.wavalign.tokens import FamilyTokens

logger = logging.getLogger(__name__)

CUT = "too long"
UNUSABLE = "cannot be used"


class _TooLongError(UserError):
    """The dialogue is left out; nothing is wrong with it."""


class DialogueReader:
    """Turns dialogues into examples.

    Args:
        max_new_tokens: maximum length of an answer that the model gives.

    Raises:
        UserError: the model has no room for a prompt.
    """

    def __init__(
        self, tokens: FamilyTokens, sounds: Sounds, options: Options, *, max_new_tokens: int
    ) -> None:
        room = tokens.positions - max_new_tokens
        if room < 1:
            raise UserError(
                f"rollout.max_new_tokens: {max_new_tokens} given, wanted less than the "
                f"{tokens.positions} positions of the model, which the prompt needs too"
            )
        self.tokens = tokens
        self.sounds = sounds
        self.options = options
        self.longest_prompt = min(options.max_prompt, room)

    def read(self, paths: Paths) -> tuple[Example, ...]:
        """Reads the examples of files, and logs which dialogues were left out and why.

        Raises:
            UserError: a file cannot be read, or no dialogue can be used.
        """
        listed: Sequence[str | Path] = [paths] if isinstance(paths, str | Path) else paths
        types, base = self.options.task_types or ["s2s"], self.options.audio_base
        found = read_dialogues(
            listed,
            ReadOptions(
                task_types=None if types == ["all"] else tuple(types),
                system_text=self.options.system,
                audio_base_path=None if base is None else Path(base),
            ),
        )
        examples: list[Example] = []
        kept: list[Dialogue] = []
        drops: list[Drop] = []
        for dialogue in found.dialogues:
            try:
                examples.append(self.example(dialogue))
                kept.append(dialogue)
            except RatioError as error:
                raise KeyedError(f"task.ratio: {error}") from error
            except CacheError as error:
                raise KeyedError(f"task.cache: {one_line(error)}") from error
            except (KeyedError, NoCodecError):
                raise  # that is no fault of the dialogue
            except UserError as error:
                reason = CUT if isinstance(error, _TooLongError) else UNUSABLE
                drops.append(Drop(dialogue.place, reason, one_line(error)))
        for line in Dialogues(tuple(kept), tuple(drops)).describe_drops():
            logger.warning("%s", line)
        told = {drop.reason: drop for drop in reversed(drops)}.values()
        for drop in drops:
            # The first of a kind is shown: what one lacks is often what all of them lack.
            level = logging.WARNING if drop in told else logging.INFO
            logger.log(level, "%s: %s", drop.place, drop.detail)
        if not examples:
            raise UserError(f"no dialogue is left, the first: {drops[0].place}: {drops[0].detail}")
        return tuple(examples)

    def example(self, dialogue: Dialogue) -> Example:
        """Returns the example of a dialogue.

        Raises:
            UserError: it cannot be used, or is too long.
        """
        messages = [{"role": turn.role, "content": turn.content} for turn in dialogue.messages]
        audios = [self.sounds.audio(path) for path in dialogue.audios]
        prompt = self.tokens.family.prompt(self.tokens.files, messages, audios)
        ids = self.sounds.with_vectors(prompt, dialogue.audios)
        self._check_length("prompt", len(ids), self.longest_prompt)
        answer = self._answer("answer", dialogue.target_text, dialogue.target_audio)
        rejected = self._answer("rejected answer", dialogue.rejected_text, dialogue.rejected_audio)
        longest = max(len(answer), len(rejected))
        self._check_length("prompt and answer", len(ids) + longest, self.tokens.positions)
        return Example(
            id=str(dialogue.place if dialogue.id is None else dialogue.id),
            prompt=dialogue.question_text,
            prompt_ids=tuple(ids),
            reference=dialogue.target_text or "",
            answer_ids=answer,
            rejected_ids=rejected if answer else (),
            history=self.tokens.history(prompt) if self.options.learn_history else (),
            record=dialogue.record,
        )

    def _answer(self, what: str, text: str | None, audio: Path | None) -> tuple[int, ...]:
        if text is None and audio is None:
            return ()
        codes: Sequence[int] | None = None if audio is None else self.sounds.codes(audio)
        ids = self.tokens.target(text, codes)
        self._check_length(what, len(ids), self.options.max_answer)
        return ids

    def _check_length(self, what: str, length: int, most: int) -> None:
        if length > most:
            raise _TooLongError(f"its {what} has {length} ids, wanted at most {most}")
