"""TRL's GRPOTrainer on the same model, prompts and rewards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.data.records import Completion

from .work import RATE, Ready, Recorded, Size


def prepare(
    size: Size,
    task: Recorded,
    settings: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    directory: Path,
    clip_norm: float,
    fused_head: bool = False,
    completions: Sequence[Completion] | None = None,
) -> Ready:
    """A run of ``steps`` steps, with further ``settings`` of ``GRPOConfig``.

    Args:
        fused_head: our subclass of TRL's trainer.
        completions: trains on these instead of sampling, ``size.group`` of each prompt.

    Raises:
        ImportError: trl, or something that it needs, is not installed.
    """
    import trl
    from datasets import Dataset

    model = task.load_model()
    examples = {example.id: example for example in task.train_examples}
    if completions is not None:
        examples = {done.example.id: done.example for done in completions}
    columns = {"prompt": [as_text(one.prompt_ids) for one in examples.values()]}

    def reward(completion_ids: list[list[int]], example: list[str], **_: Any) -> list[float | None]:
        done = zip(completion_ids, example, strict=True)
        return task.rewards(
            [Completion(example=examples[one], ids=tuple(ids), ended=False) for ids, one in done]
        )

    arguments: dict[str, Any] = {
        "output_dir": str(directory), "use_cpu": True, "bf16": False, "report_to": "none",
        "learning_rate": RATE, "lr_scheduler_type": "cosine", "weight_decay": 0.0,
        "max_grad_norm": clip_norm, "beta": 0.0, "loss_type": "grpo", "temperature": 1.0,
        "per_device_train_batch_size": size.completions, "num_generations": size.group,
        "max_completion_length": size.length, "max_steps": steps, "seed": seed,
        "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 10,
        "disable_tqdm": True,
    }  # fmt: skip
    arguments |= settings
    micro_batch = arguments["per_device_train_batch_size"]
    if fused_head:
        from wavalign_fast.integrations.trl import FusedGRPOTrainer as GRPOTrainer
    else:
        from trl import GRPOTrainer
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=trl.GRPOConfig(
            **arguments, gradient_accumulation_steps=size.completions // micro_batch
        ),
        processing_class=tokenizer(task),
        train_dataset=Dataset.from_dict(columns | {"example": list(examples)}),
        rollout_func=None if completions is None else _replay(completions),
    )
    return Ready(model, trainer.train)


def as_text(ids: Sequence[int]) -> str:
    """A text that ``tokenizer`` turns into these ids."""
    return " ".join(map(_word, ids))


def _word(token: int) -> str:
    # In brackets, because special words are found inside others, such as 1 in 16.
    return f"<{token}>"


def tokenizer(task: Recorded) -> Any:
    """A tokenizer with a word for each id; nothing is downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {_word(token): token for token in range(task.layout.vocab_size)}
    inner = Tokenizer(models.WordLevel(words, unk_token=_word(task.pad_id)))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=_word(task.pad_id),
        eos_token=_word(task.eos_id),
        padding_side="left",
    )


def _replay(completions: Sequence[Completion]) -> Any:
    """A ``rollout_func`` of TRL that returns ``completions`` instead of sampling."""

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        left: dict[str, list[Completion]] = {}
        for done in completions:
            left.setdefault(as_text(done.example.prompt_ids), []).append(done)
        replayed = [left[prompt].pop(0) for prompt in prompts]
        return {
            "prompt_ids": [list(done.example.prompt_ids) for done in replayed],
            "completion_ids": [list(done.ids) for done in replayed],
            "logprobs": None,
        }

    return rollout
