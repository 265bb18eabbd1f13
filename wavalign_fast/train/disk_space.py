"""Checks before training that the disk takes what the runs of a command will write."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError, naming, one_line
from wavalign_fast.models import lora_bytes
from wavalign_fast.outputs import reserve
from wavalign_fast.train.checkpoint import CheckpointStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_LIMIT = 1 << 30
"""Largest file, in bytes, that is created to test whether the disk takes a checkpoint."""


def check_space(
    runs: Sequence[tuple[RunConfig, Path]], model: "PreTrainedModel", world: int
) -> None:
    """Raises ``UserError`` if the disk has no room for the checkpoints and exported models.

    Args:
        runs: configuration and directory of each run.
        model: the model that they begin with, in the dtype in which it is stored.
        world: the number of ranks.
    """
    whole = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # The last checkpoint is removed only after the next one is whole.
    checkpoints, models, trained = 1, 0, 0
    for config, directory in runs:
        adapted = config.model.lora.rank > 0
        trained = max(trained, _adapters(config, model) if adapted else whole)
        # A checkpoint that is no model directory is followed by one, beside that of an older run.
        models += world > 1 or adapted
        train = config.train
        saves = train.steps // train.checkpoint_every + 1 if train.checkpoint_every else 1
        if not CheckpointStore(directory).newest.exists():
            checkpoints += min(train.keep_checkpoints, saves) + bool(train.keep_best)
    directory = runs[0][1]
    disk = shutil.disk_usage(directory)
    size = 3 * trained  # weights and AdamW's two moments
    mib, whole_mib = (size >> 20) + 1, (whole >> 20) + 1
    if disk.total and disk.free < checkpoints * size + models * whole:  # some disks report 0
        files = f"{checkpoints} checkpoints of {mib} MiB"
        if models:
            files += f" and {models} exported models of {whole_mib} MiB"
        raise UserError(
            f"{directory}: {disk.free >> 20} MiB free on its disk, wanted "
            f"{checkpoints * mib + models * whole_mib} MiB for {files}"
        )
    try:
        reserve(directory, min(max(2 * trained, whole if models else 0), PROBE_LIMIT))
    except OSError as error:
        raise UserError(
            f"{directory} does not take a checkpoint of {mib} MiB: {one_line(error)}"
        ) from error


def _adapters(config: RunConfig, model: "PreTrainedModel") -> int:
    lora = config.model.lora
    with naming("model.lora"):
        return lora_bytes(model, rank=lora.rank, targets=lora.targets, head=lora.head)
