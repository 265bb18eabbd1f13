"""Rewards from a sequence-classification model of transformers, frozen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wavalign_fast.errors import UserError, user_input


class ClassifierReward:
    """The output of a model for the question and the answer's text.

    Args:
        directory: model and tokenizer in transformers' form, with safetensors. No code of the
            directory is run.
        label: which output counts.
        output: ``logit``; ``sigmoid`` of it; or ``probability``, by the softmax over all labels.
        chat: puts question and answer through the tokenizer's chat template; else they are a pair
            of texts.
        batch_size: answers at once.
        device: ``auto`` takes a GPU if torch sees one.

    Raises:
        UserError: the directory has no such model, or no such label.
    """

    def __init__(
        self,
        directory: Path,
        *,
        label: int = 0,
        output: str = "logit",
        chat: bool = False,
        batch_size: int = 16,
        device: str = "auto",
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not directory.is_dir():
            raise UserError(f"no such directory: {directory}")
        with user_input(str(directory)):
            # Said, or transformers asks on the terminal whether to run the directory's code.
            self.tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            self.model = AutoModelForSequenceClassification.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        labels = self.model.config.num_labels
        if not 0 <= label < labels:
            raise UserError(f"label: {label} given, wanted 0 to {labels - 1}, as {directory} has")
        self.label = label
        self.output = output
        self.chat = chat
        self.batch_size = batch_size
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device).eval().requires_grad_(False)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side = "right"
        positions = getattr(self.model.config, "max_position_embeddings", None)
        self.longest = min(positions or self.tokenizer.model_max_length, 1_000_000)

    def __call__(self, answers: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Returns the output for each answer, ``None`` for one that is too long for the model."""
        encoded = [self._encoded(answer) for answer in answers]
        fits = [place for place, ids in enumerate(encoded) if len(ids["input_ids"]) <= self.longest]
        fits.sort(key=lambda place: len(encoded[place]["input_ids"]))
        found: list[float | None] = [None] * len(answers)
        for start in range(0, len(fits), self.batch_size):
            places = fits[start : start + self.batch_size]
            values = self._outputs([encoded[place] for place in places])
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found

    def _encoded(self, answer: Mapping[str, Any]) -> dict[str, list[int]]:
        question, text = answer["prompt"], answer["text"]
        if not self.chat:
            return dict(self.tokenizer(question, text))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        ids = self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
        return dict(ids)

    @torch.no_grad()
    def _outputs(self, encoded: Sequence[Mapping[str, list[int]]]) -> list[float]:
        batch = self.tokenizer.pad(list(encoded), return_tensors="pt").to(self.model.device)
        logits = self.model(**batch).logits.float()
        if self.output == "probability":
            return logits.softmax(-1)[:, self.label].tolist()
        chosen = logits[:, self.label]
        return (chosen.sigmoid() if self.output == "sigmoid" else chosen).tolist()
