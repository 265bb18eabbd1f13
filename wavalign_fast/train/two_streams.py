"""What the trainer checks of a model with two streams, and of one with one."""

from typing import TYPE_CHECKING

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError
from wavalign_fast.models import TwoStreams, check_vocabulary
from wavalign_fast.train.task_protocol import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def streams_of(task: Task) -> TwoStreams | None:
    """Returns how the ids of a task's two streams stand in one list, ``None`` for one stream."""
    streams: TwoStreams | None = getattr(task, "streams", None)
    return streams


def check_heads(model: "PreTrainedModel", task: Task) -> None:
    """Raises ``UserError`` unless the head, or each of two, has a row for each id of the task."""
    streams = streams_of(task)
    if streams is None:
        check_vocabulary(model, task.layout)
    else:
        streams.check_model(model)


def check_options(config: RunConfig, task: Task) -> None:
    """Raises ``UserError`` for an option that two streams and two heads cannot honour."""
    if streams_of(task) is None:
        return
    loss, model = config.loss, config.model
    for key, given, wanted, why in (
        ("method", config.method, "hybrid", "a pair's margin needs the log-probs of both heads"),
        ("rollout.engine", config.rollout.engine, "builtin", "vLLM has no second head"),
        ("parallel.head", config.parallel.head, "gathered", "a shard is of one head"),
        (
            "loss.importance_sampling_level", loss.importance_sampling_level, "token",
            "a ratio of a whole rollout needs the log-probs of both heads",
        ),
        ("model.kernels", model.kernels, "torch", "liger does not know this model"),
    ):  # fmt: skip
        if given != wanted:
            raise UserError(f"{key}: {given} given, wanted {wanted} for two streams: {why}")
    if (length := config.rollout.max_new_tokens) < 2:
        raise UserError(
            f"rollout.max_new_tokens: {length} given, wanted at least 2 for two streams: a "
            "position has two ids"
        )
