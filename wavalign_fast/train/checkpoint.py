"""Checkpoints: a Hugging Face model directory plus everything an exact resume needs."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.train.files import replace_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE_FILE = "training_state.pt"
FORMAT = 1


@dataclass(frozen=True)
class CheckpointStore:
    """``checkpoint/`` of a run directory (the newest) and ``checkpoints/step-*`` (older ones)."""

    run_directory: Path
    keep: int = 1

    @property
    def newest(self) -> Path:
        """Where the newest checkpoint is."""
        return self.run_directory / "checkpoint"

    def save(self, model: "PreTrainedModel", state: dict[str, Any]) -> None:
        """Writes model and state beside the old checkpoint, then renames."""
        temporary = self.run_directory / f".checkpoint.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            model.save_pretrained(temporary)
            torch.save({"format": FORMAT, **state}, temporary / STATE_FILE)
            replace_directory(temporary, self.newest, self._retired_name())
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self._retired()[: -(self.keep - 1) or None]:
            shutil.rmtree(old, ignore_errors=True)

    def load_state(self) -> dict[str, Any] | None:
        """State of the newest checkpoint; None where there is no checkpoint yet."""
        self._recover()
        path = self.newest / STATE_FILE
        if not self.newest.exists():
            return None
        if not path.is_file():
            raise UserError(f"{self.newest} cannot be resumed: {STATE_FILE} is missing")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch raise many types for a bad file
            raise UserError(f"{path} cannot be read: {one_line(error)}") from error
        if state.get("format") != FORMAT:
            raise UserError(f"{path}: format {state.get('format')}, wanted {FORMAT}")
        return state

    def _recover(self) -> None:
        """Puts the old checkpoint back after a crash between the two renames of ``save``."""
        if self.newest.exists():
            return
        parked = self.run_directory / "checkpoint.old"
        candidates = [*self._retired(), *([parked] if parked.exists() else [])]
        if candidates:
            os.replace(candidates[-1], self.newest)

    def _retired_name(self) -> Path | None:
        if self.keep == 1 or not (self.newest / STATE_FILE).is_file():
            return None
        step = torch.load(self.newest / STATE_FILE, map_location="cpu", weights_only=True)["step"]
        return self.run_directory / "checkpoints" / f"step-{step:06d}"

    def _retired(self) -> list[Path]:
        return sorted((self.run_directory / "checkpoints").glob("step-*"))


def random_state(generator: torch.Generator, rng: random.Random) -> dict[str, Any]:
    """Every random state a step may read: the run's own two and the global ones."""
    return {
        "generator": generator.get_state(),
        "rng": rng.getstate(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }


def restore_random_state(
    state: dict[str, Any], generator: torch.Generator, rng: random.Random
) -> None:
    """Puts the states of ``random_state`` back."""
    generator.set_state(state["generator"])
    rng.setstate(state["rng"])
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
