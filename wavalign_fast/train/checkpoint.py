"""The checkpoints of a run: written beside the old one, and renamed when they are whole."""

import logging
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from wavalign_fast.errors import (
    DamagedFileError,
    OtherRankError,
    UserError,
    described,
    one_line,
    shared,
)
from wavalign_fast.train.atomic_files import remove, replace_directory, sync_directory
from wavalign_fast.train.checkpoint_layouts import (
    is_plain,
    plain_writer,
    read_plain,
    read_sharded,
    sharded_writer,
)
from wavalign_fast.train.checksums import checksum, checksums_of
from wavalign_fast.train.export import check_same_model, is_sharded
from wavalign_fast.train.owned_files import (
    CHECKPOINT,
    OLDER_CHECKPOINTS,
    PARKED_CHECKPOINT,
    STATE_FILE,
    UNFINISHED_CHECKPOINT,
    checkpoint_contents,
    write_contents,
)
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.sharded_files import PartError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wavalign_fast.train.policy import Policy

FORMAT = 1

logger = logging.getLogger(__name__)


@dataclass
class CheckpointStore:
    """The checkpoints of a run: the newest in ``checkpoint/``, older ones in ``checkpoints/``.

    Every rank has a store and calls it at the same place; all write their parts, and rank 0 alone
    renames. An error of one rank is raised on all of them.
    """

    run_directory: Path
    keep: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    aside: bool = False
    """Whether a save returns as soon as the state is copied, and is written beside training."""

    def __post_init__(self) -> None:
        # A group of its own: what is written aside communicates at any moment of training.
        self._writers = self.ranks.with_own_group() if self.aside else self.ranks
        self._saving: _Saving | None = None

    @property
    def newest(self) -> Path:
        """The directory of the newest checkpoint."""
        return self.run_directory / CHECKPOINT

    def save(
        self,
        policy: "Policy",
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        *,
        best_step: int | None = None,
    ) -> None:
        """Writes a checkpoint to a temporary directory, then puts it in place by renames.

        With ``aside`` it returns when the state is copied; ``finish`` waits for the files.

        Args:
            state: ``step`` and whatever else ``load`` shall return, as plain values and tensors.
            best_step: the step of a checkpoint that is kept, however old it is.

        Raises:
            UserError: the files cannot be written, now or those of the last save; the previous
                checkpoint is unchanged.
        """
        self.finish()
        writer = plain_writer if is_plain(policy, self.ranks) else sharded_writer
        write = writer(policy, optimizer, copied=self.aside)
        if not self.aside:
            self._write(write, state, best_step)
            return
        self._saving = _Saving(lambda: self._write(write, state, best_step))

    def finish(self) -> None:
        """Waits for the files of the last save; raises what ``save`` would have raised."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.finish()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Waits at the end of this block for the files of the last save, whatever happened in it.

        Raises:
            UserError: they cannot be written.
        """
        try:
            yield
        except BaseException:
            try:
                self.finish()
            except OtherRankError:
                pass  # that rank says it
            except UserError as error:  # what ended the block is the news
                logger.warning("%s", error)
            raise
        self.finish()

    def _write(
        self,
        write: Callable[[Path, Ranks], dict[str, Any]],
        state: dict[str, Any],
        best_step: int | None,
    ) -> None:
        """Writes the parts of every rank, then the small file and the renames of rank 0."""
        ranks = self._writers
        temporary = self.run_directory / UNFINISHED_CHECKPOINT
        try:
            what = f"the checkpoint of step {state['step']} on all ranks"
            with self._naming_the_step(state["step"]), ranks.waiting_for(what):
                with ranks.failing_together():
                    if ranks.is_main:
                        remove(temporary)
                        temporary.mkdir(parents=True)
                with ranks.failing_together():
                    if not temporary.is_dir():
                        raise OSError(
                            f"rank {ranks.rank} does not see {temporary}, which rank 0 has made; "
                            "wanted a directory that all machines share"
                        )
                parts = write(temporary, ranks)
                sums = checksums_of(temporary, ranks)
                with ranks.failing_together():
                    if ranks.is_main:
                        whole = {"format": FORMAT, **state, **parts}
                        self._complete(temporary, whole, sums, best_step)
        finally:
            if ranks.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
        if ranks.is_main:
            for old in self._retired()[: -(self.keep - 1) or None]:
                if _step_of(old) != best_step:
                    shutil.rmtree(old, ignore_errors=True)

    def _complete(
        self, temporary: Path, state: dict[str, Any], sums: dict[str, str], best_step: int | None
    ) -> None:
        with (temporary / STATE_FILE).open("wb") as file:
            # Into a Python file, so that a full disk is an OSError with that message.
            torch.save(state, file)
        sums = {**sums, STATE_FILE: checksum(temporary / STATE_FILE)}
        write_contents(temporary, state["step"], crc32=sums)
        sync_directory(temporary)
        replace_directory(temporary, self.newest, self._retired_name(best_step))

    @contextmanager
    def _naming_the_step(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, OtherRankError) as error:
            # Every rank is here. Of DCP's error all have the same message, and rank 0 reports it.
            elsewhere = isinstance(error, OtherRankError) or (
                isinstance(error, PartError) and not self.ranks.is_main
            )
            kind = OtherRankError if elsewhere else UserError
            raise shared(
                kind(
                    f"checkpoint of step {step} cannot be written in {self.run_directory}: "
                    f"{one_line(error)}; an older one is unchanged"
                )
            ) from error

    def load(self, policy: "Policy", optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Loads the newest checkpoint into model and optimizer, and returns the saved ``state``.

        It may have been saved by any number of ranks. Returns ``None`` and changes nothing if there
        is no checkpoint yet.

        Raises:
            DamagedFileError: a file is missing or cannot be read.
            UserError: the checkpoint is of another model or in another format.
        """
        with self.ranks.waiting_for("the other ranks to load the checkpoint"):
            return self._load(policy, optimizer)

    def _load(self, policy: "Policy", optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        with self.ranks.failing_together():
            if self.ranks.is_main:
                self._recover()
        with self.ranks.failing_together():
            state = self.load_state()
        if state is None:
            return None
        with self.naming_damage():
            if is_sharded(self.newest):
                read_sharded(self.newest, policy, optimizer, self.ranks)
            else:
                read_plain(self.newest, policy, optimizer, state["optimizer"], self.ranks)
        return state

    def check_model(self, model: "PreTrainedModel") -> None:
        """Raises ``UserError`` if the newest checkpoint is of another model or damaged."""
        with self.naming_an_older_one():
            if self.newest.exists():
                check_same_model(self.newest, model)

    def load_state(self) -> dict[str, Any] | None:
        """Loads the small state of the newest checkpoint; ``None`` if there is no checkpoint yet.

        Raises:
            DamagedFileError: the state is missing or cannot be read.
            UserError: the state is in another format.
        """
        path = self.newest / STATE_FILE
        if not self.newest.exists():
            return None
        if not path.is_file():
            raise DamagedFileError(f"{self.newest} cannot be resumed: {STATE_FILE} is missing")
        try:
            state = torch.load(
                # Of a whole optimizer each of several ranks reads its part only.
                path,
                map_location="cpu",
                weights_only=True,
                mmap=self.ranks.world > 1,
            )
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
        except OSError as error:
            raise DamagedFileError(f"{self.newest} cannot be read: {one_line(error)}") from error
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

    def _retired_name(self, best_step: int | None) -> Path | None:
        step = _step_of(self.newest)
        if step < 0 or (self.keep == 1 and step != best_step):
            return None
        return self.run_directory / OLDER_CHECKPOINTS / f"step-{step:06d}"

    def of_step(self, step: int) -> Path | None:
        """The directory of the checkpoint of ``step``, if it is there."""
        places = [self.newest, *self._retired()]
        return next((path for path in places if _step_of(path) == step), None)

    def _retired(self) -> list[Path]:
        return sorted((self.run_directory / OLDER_CHECKPOINTS).glob("step-*"), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    step = checkpoint_contents(checkpoint).get("step")
    return step if isinstance(step, int) else -1


class _Saving:
    """A save that goes on beside training."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # it is raised where somebody waits
            self._error = error

    def finish(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error
