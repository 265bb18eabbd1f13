"""The base model: architecture, training and files."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_fast.data.records import Example
from wavalign_fast.errors import one_line
from wavalign_fast.recipes.spoken_sums import vocabulary as vocab
from wavalign_fast.recipes.spoken_sums.assets import SpeechAssets
from wavalign_fast.recipes.spoken_sums.data import (
    WRONG_SHARE,
    answer_text,
    demonstrated_number,
    spoken_answer,
)

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of base training."""

    spoken: bool
    """Whether answers have speech or only text."""
    steps: int
    batch_size: int
    lr: float


PHASES = (
    Phase(spoken=False, steps=600, batch_size=128, lr=2e-3),
    Phase(spoken=True, steps=1600, batch_size=48, lr=1e-3),
)


def model_config() -> Qwen2Config:
    """Returns the config of a Qwen2 with 0.93 M parameters and untied embeddings."""
    return Qwen2Config(
        vocab_size=vocab.VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.04,
        tie_word_embeddings=False,
        use_sliding_window=False,
        pad_token_id=vocab.PAD,
        eos_token_id=vocab.EOS,
        bos_token_id=None,
    )


def new_model(seed: int) -> Qwen2ForCausalLM:
    """Makes an untrained model without changing the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(model_config())


def load_base(directory: Path) -> Qwen2ForCausalLM:
    """Loads the stored base model, in fp32 and in eval mode."""
    model = Qwen2ForCausalLM(Qwen2Config.from_pretrained(directory))
    try:
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{directory} holds no base model: {one_line(error)}") from error
    return model.eval()


def save_base(model: Qwen2ForCausalLM, directory: Path) -> None:
    """Writes ``config.json`` and ``model.safetensors``, in fp16 to halve the size of the wheel."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    stored = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})


def collate(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded ids [B, L] and the label of each position [B, L], -100 for none."""
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(prompts), length), vocab.PAD)
    labels = torch.full((len(prompts), length), IGNORE)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        start = len(prompt) - 1
        labels[row, start : start + len(answer)] = torch.tensor(answer)
    return ids, labels


def modality_losses(
    model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean cross-entropy of text labels (with EOS) and of speech labels (boa, eoa)."""
    live = labels != IGNORE
    # No mask: rows are right-padded and attention is causal, so nothing attends to the padding.
    hidden = model.model(ids, use_cache=False).last_hidden_state[live]
    targets = labels[live]
    loss = F.cross_entropy(model.lm_head(hidden), targets, reduction="none")
    speech = targets >= vocab.SPEECH_START
    speech |= (targets == vocab.BEGIN_AUDIO) | (targets == vocab.END_AUDIO)
    spoken = loss[speech].mean() if speech.any() else loss.new_zeros(())
    return loss[~speech].mean(), spoken


def _learning_rate(phase: Phase, step: int) -> float:
    """Returns the rate: linear warm-up over 100 steps, times a cosine that ends at a tenth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / phase.steps))
    return phase.lr * min(1, step / 100) * (0.9 * cosine + 0.1)


def _answer(spoken: bool, number: int, assets: SpeechAssets, rng: random.Random) -> tuple[int, ...]:
    if spoken:
        return spoken_answer(number, assets, rng)
    return (*vocab.encode_words(answer_text(number)), vocab.EOS)


def _train_phase(
    model: Qwen2ForCausalLM,
    phase: Phase,
    examples: Sequence[Example],
    assets: SpeechAssets,
    rng: random.Random,
    progress: Callable[[str], None],
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), phase.lr, weight_decay=0.05)
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(phase, step)
        batch = rng.choices(examples, k=phase.batch_size)
        answers = [
            _answer(phase.spoken, demonstrated_number(example, WRONG_SHARE, rng), assets, rng)
            for example in batch
        ]
        ids, labels = collate([example.prompt_ids for example in batch], answers)
        text, speech = modality_losses(model, ids, labels)
        optimizer.zero_grad()
        (text + speech).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0:
            kind = "spoken" if phase.spoken else "text"
            progress(
                f"base {kind} {step + 1}/{phase.steps}: "
                f"text loss {text.item():.3f}, speech loss {speech.item():.3f}"
            )


def train_base(
    examples: Sequence[Example],
    assets: SpeechAssets,
    *,
    seed: int,
    phases: Sequence[Phase] = PHASES,
    progress: Callable[[str], None] = print,
) -> Qwen2ForCausalLM:
    """Trains a model first on sums in text, then on spoken answers.

    Two answers in five are wrong but spoken as written. So the speech follows the model's own text
    instead of the sum, and sampled answers leave room for reinforcement learning.
    """
    model, rng = new_model(seed).train(), random.Random(seed)
    for phase in phases:
        _train_phase(model, phase, examples, assets, rng, progress)
    return model.eval()
