"""Talks to a model of a transformers directory, as the recipe dialogue does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.answering import Parts
from wavalign_fast.evaluation.prompts import Prompt
from wavalign_fast.recipes.dialogue.options import Options
from wavalign_fast.recipes.dialogue.tokens import Tokens, load_tokens


class ChatModel:
    """The ids of a model directory; see ``Speaker``.

    Args:
        system: system message of prompts that have none of their own.
        options: the recipe's: ``speech``, ``boundary``, ``eos``, ``chat_template``.

    Raises:
        UserError: the directory is not a model's, or lacks what the options name.
    """

    embeddings = None
    streams = None
    mtp = None

    def __init__(self, directory: Path, *, system: str | None, options: Options) -> None:
        with _as_arguments():
            self.tokens: Tokens = load_tokens(directory, options)
        self.system = system
        self.ends = self.tokens.ends
        self.pad_id = self.tokens.pad_id
        self.positions = self.tokens.positions

    def ids(self, prompt: Prompt) -> list[int]:
        """Returns the ids of a prompt; ``ValueError`` if it has sound, or special tokens."""
        if prompt.audios:
            raise ValueError(
                f"the prompt has sound ({prompt.audios[0].name}), which a model of this kind "
                "cannot hear; wanted --modality text, or a directory of a known family"
            )
        turns = [{"role": role, "content": content} for role, content in prompt.messages]
        for number, turn in enumerate(turns):
            self.tokens.encode_words(f"messages[{number}].content", turn["content"])
        if self.system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.system}, *turns]
        if self.tokens.template is None and len(turns) == 1:
            return self.tokens.encode(turns[0]["content"])
        return self.tokens.encode_chat(turns)

    def parts(self, ids: Sequence[int]) -> Parts:
        """Splits an answer; a code is a speech id's place among all speech ids."""
        firsts = []  # of each range: its first id, and the number of speech ids before it
        before = 0
        for first, end in self.tokens.layout.speech:
            firsts.append((first, end, before))
            before += end - first
        codes = [
            token - first + before
            for token in self.tokens.speech(ids)
            for first, end, before in firsts
            if first <= token < end
        ]
        return Parts(self.tokens.text(ids), codes)


@contextmanager
def _as_arguments() -> Iterator[None]:
    """Names the command's options in errors that name the recipe's."""
    names = {"model.path": "--model", "task.speech": "--speech", "task.eos": "--eos",
             "task.boundary": "--boundary", "task.chat_template": "--chat-template"}  # fmt: skip
    try:
        yield
    except UserError as error:
        message = str(error)
        for key, option in names.items():
            if message.startswith(f"{key}:"):
                message = option + message.removeprefix(key)
        raise UserError(message) from error
