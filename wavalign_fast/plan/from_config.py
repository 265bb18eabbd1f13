"""What of a run's configuration decides its memory."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.models import second_head
from wavalign_fast.models.attention import TAKES_BORDERS
from wavalign_fast.models.families.registry import storing_family
from wavalign_fast.models.json_files import read_config
from wavalign_fast.models.meta_weights import weights_on_meta
from wavalign_fast.plan.planned_run import PlannedRun
from wavalign_fast.train.model_setup import sampling_dtype
from wavalign_fast.train.policy import mesh_shape


def planned_run(config: RunConfig, *, ranks: int, prompt_tokens: int) -> PlannedRun:
    """Returns the sizes of a run for the busiest of ``ranks`` ranks.

    Every completion is taken to be as long as ``rollout.max_new_tokens`` allows and to carry loss
    on all of its tokens, and demonstrations to be no longer than that.

    Args:
        prompt_tokens: length of the longest prompt, which the configuration does not know.

    Raises:
        UserError: ranks that do not divide as asked.
    """
    rollout = config.rollout
    length = prompt_tokens + rollout.max_new_tokens - 1  # the last id is a target only
    completions = rollout.prompts * rollout.group_size if config.needs_rollouts else 0
    demonstrations = config.anchor.rows if config.needs_anchor else 0
    kinds = [math.ceil(count / ranks) for count in (completions, demonstrations)]
    # A micro-batch has rows of one kind. The row that fills it closes it; packed rows fit in.
    fill = config.train.block_tokens / length
    packed = config.model.attention in TAKES_BORDERS
    rows = min(max(math.floor(fill), 1) if packed else math.ceil(fill), max(kinds))
    replicate, shard = mesh_shape(config.parallel, ranks)
    computed = getattr(torch, config.model.compute_dtype or config.model.dtype)
    return PlannedRun(
        replicate=replicate,
        shard=shard,
        head=config.parallel.head,
        reshard=config.parallel.reshard,
        weights_dtype=getattr(torch, config.model.dtype),
        compute_dtype=computed,
        sampling_dtype=sampling_dtype(config) or getattr(torch, config.model.dtype),
        optimizer=config.optimizer.name,
        checkpointing=config.model.activation_checkpointing,
        lora_rank=config.model.lora.rank,
        lora_targets=tuple(config.model.lora.targets),
        lora_head=config.model.lora.head,
        reference=config.needs_reference,
        rows=rows,
        length=length,
        live=rows * rollout.max_new_tokens,
        micro_batches=sum(math.ceil(count / rows) for count in kinds),
        sampled=_sampled(config, ranks) if completions else 0,
        sampled_length=prompt_tokens + rollout.max_new_tokens,
        keep_copy=rollout.keep_copy,
        vllm=_vllm(config) if completions else None,
    )


def _sampled(config: RunConfig, ranks: int) -> int:
    """Completions that the busiest rank decodes at once by its own model.

    vLLM samples in memory of its own; only evaluations, which the ranks share, are then left.
    """
    rollout = config.rollout
    if rollout.engine == "vllm":
        items = math.ceil(config.train.eval_items / ranks)
        return min(items, rollout.prompts * rollout.group_size)
    return math.ceil(rollout.prompts / ranks) * rollout.group_size


def _vllm(config: RunConfig) -> Literal["server", "in_process"] | None:
    if config.rollout.engine != "vllm":
        return None
    return "in_process" if config.rollout.vllm.url is None else "server"


def model_config(directory: Path) -> Any:
    """Reads the transformers config of a model directory; no weight is read and no code run.

    For a family's own directory it is that of its native model.

    Raises:
        UserError: the directory has no ``config.json``, or it is not that of a causal LM that
            transformers itself knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"model.path: no config.json in {directory}, wanted a model's directory")
    try:
        json.loads(path.read_text(encoding="utf-8"))
        if family := storing_family(directory):
            with weights_on_meta():
                model = family.build(read_config(directory), torch.float32)
            if second_head(model) is not None:
                raise UserError(
                    f"model.path: {directory} is of the family {family.NAME}, which has two "
                    "streams; wanted a model of one, whose memory can be planned"
                )
            return model.config
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except UserError:
        raise
    except Exception as error:  # transformers raises many types for a bad file
        raise DamagedFileError(f"model.path: {path} cannot be read: {one_line(error)}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"model.path: {path} is of {config.model_type!r}, wanted a causal LM")
    return config
