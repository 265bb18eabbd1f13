"""Checkpoints: a Hugging Face model directory, and the state that an exact resume needs."""

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from wavalign_fast.errors import DamagedFileError, UserError, described, one_line
from wavalign_fast.models import load_checkpoint
from wavalign_fast.train.atomic_files import remove, replace_directory, sync_directory, write_json
from wavalign_fast.train.owned_files import (
    CHECKPOINT,
    CONTENTS_FILE,
    OLDER_CHECKPOINTS,
    PARKED_CHECKPOINT,
    UNFINISHED_CHECKPOINT,
    checkpoint_contents,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE_FILE = "training_state.pt"
FORMAT = 1


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of a run: the newest in ``checkpoint/``, older ones in ``checkpoints/``."""

    run_directory: Path
    keep: int = 1

    @property
    def newest(self) -> Path:
        """The directory of the newest checkpoint."""
        return self.run_directory / CHECKPOINT

    def save(
        self, model: "PreTrainedModel", optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Writes a checkpoint to a temporary directory, then puts it in place by renames.

        Args:
            state: ``step`` and whatever else ``load`` shall return, as plain values and tensors.

        Raises:
            UserError: the files cannot be written; the previous checkpoint is unchanged.
        """
        temporary = self.run_directory / UNFINISHED_CHECKPOINT
        remove(temporary)
        try:
            model.save_pretrained(temporary)
            with (temporary / STATE_FILE).open("wb") as file:
                # Into a Python file, so that a full disk is an OSError with that message.
                whole = {"format": FORMAT, **state, "optimizer": optimizer.state_dict()}
                torch.save(whole, file)
            files = sorted(path.name for path in temporary.iterdir())
            write_json(temporary / CONTENTS_FILE, {"step": state["step"], "files": files})
            sync_directory(temporary)
            replace_directory(temporary, self.newest, self._retired_name())
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"checkpoint of step {state['step']} cannot be written in {self.run_directory}: "
                f"{one_line(error)}; an older one is unchanged"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self._retired()[: -(self.keep - 1) or None]:
            shutil.rmtree(old, ignore_errors=True)

    def load(
        self, model: "PreTrainedModel", optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """Loads the newest checkpoint into model and optimizer, and returns the saved ``state``.

        Returns ``None`` and changes nothing if there is no checkpoint yet.

        Raises:
            DamagedFileError: a file is missing or cannot be read.
            UserError: the checkpoint is of another model or in another format.
        """
        state = self.load_state()
        if state is None:
            return None
        model.load_state_dict(load_checkpoint(self.newest, like=model).state_dict())
        with self.naming_damage():
            optimizer.load_state_dict(state["optimizer"])
        return state

    def load_state(self) -> dict[str, Any] | None:
        """Loads the small state of the newest checkpoint; ``None`` if there is no checkpoint yet.

        Raises:
            DamagedFileError: the state is missing or cannot be read.
            UserError: the state is in another format.
        """
        self._recover()
        path = self.newest / STATE_FILE
        if not self.newest.exists():
            return None
        if not path.is_file():
            raise DamagedFileError(f"{self.newest} cannot be resumed: {STATE_FILE} is missing")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's message advises to run the file's code
            raise DamagedFileError(
                f"{path} cannot be read: it is damaged, or holds more than tensors and plain values"
            ) from error
        except Exception as error:  # pickle, zipfile and torch raise many types for a bad file
            raise DamagedFileError(f"{path} cannot be read: {one_line(error)}") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            seen = state.get("format") if isinstance(state, dict) else type(state).__name__
            raise UserError(f"{path}: format {seen}, wanted {FORMAT}")
        return state

    @contextmanager
    def naming_damage(self) -> Iterator[None]:
        """Turns an error of this block, which takes a loaded state apart, into a UserError."""
        try:
            yield
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DamagedFileError(
                f"{self.newest} cannot be resumed: its state is damaged or of another model "
                f"({described(error)})"
            ) from error

    @contextmanager
    def naming_an_older_one(self) -> Iterator[None]:
        """Adds the place of an older checkpoint, if there is one, to a ``DamagedFileError``."""
        try:
            yield
        except DamagedFileError as error:
            if (older := self._latest_older()) is None:
                raise
            raise UserError(
                f"{error}; an older checkpoint, of step {_step_of(older)}, is in {older}: --resume "
                f"takes it once {self.newest} is removed"
            ) from error

    def _recover(self) -> None:
        """Restores the previous checkpoint after a crash between the two renames of ``save``."""
        if not self.newest.exists() and (older := self._latest_older()):
            os.replace(older, self.newest)

    def _latest_older(self) -> Path | None:
        parked = self.run_directory / PARKED_CHECKPOINT
        candidates = [*self._retired(), *([parked] if parked.exists() else [])]
        whole = [path for path in candidates if (path / STATE_FILE).is_file()]
        return max(whole, key=_step_of, default=None)

    def _retired_name(self) -> Path | None:
        step = _step_of(self.newest)
        if self.keep == 1 or step < 0:
            return None
        return self.run_directory / OLDER_CHECKPOINTS / f"step-{step:06d}"

    def _retired(self) -> list[Path]:
        return sorted((self.run_directory / OLDER_CHECKPOINTS).glob("step-*"), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    step = checkpoint_contents(checkpoint).get("step")
    return step if isinstance(step, int) else -1
