"""What the code blocks of a page find: names, and files in the working directory.

Whoever follows a page has a model, a tokenizer or a checkpoint; here these are tiny.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.docs.pages import ROOT

VOCAB, SPEECH_START = 40, 24
FAMILIES = ROOT / "tests" / "data" / "families"


class Tokenizer:
    """What `ModalityLayout.from_tokenizer` reads of a tokenizer."""

    eos_token_id = 3

    def get_vocab(self) -> dict[str, int]:
        text = {f"word{i}": i for i in range(SPEECH_START - 2)}
        audio = {f"<|audio_{i}|>": SPEECH_START + i for i in range(VOCAB - SPEECH_START)}
        ends = ("<|begin_of_audio|>", "<|end_of_audio|>")
        return text | {name: SPEECH_START - 2 + i for i, name in enumerate(ends)} | audio

    def __len__(self) -> int:
        return VOCAB


def small_model(seed: int) -> torch.nn.Module:
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(vocab_size=VOCAB, **sizes, **heads)
    )


def step(left: bool) -> dict[str, torch.Tensor]:
    """Two prompts of 2 and 4 tokens, two rollouts each, and one demonstration.

    ``left``: the prompts are padded on the left to one length, as `generate` leaves them. Else the
    rows are padded on the right.
    """
    generator = torch.Generator().manual_seed(0)
    lengths, rows, masks = [2, 4], [], []
    for length in lengths:
        prompt = torch.randint(4, VOCAB, (length,), generator=generator)
        for completion in (3, 5):
            ids = torch.randint(4, VOCAB, (completion,), generator=generator)
            before = 4 - length if left else 0
            row, mask = torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)
            row[before : before + length + completion] = torch.cat([prompt, ids])
            mask[before : before + length + completion] = 1
            rows.append(row)
            masks.append(mask)
    rows.append(torch.randint(4, VOCAB, (9,), generator=generator))
    masks.append(torch.ones(9, dtype=torch.int64))
    input_ids, attention_mask = torch.stack(rows), torch.stack(masks)
    labels = torch.full_like(input_ids, -100)
    labels[-1, 3:] = input_ids[-1, 3:]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "completion_mask": torch.tensor(2 * [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "labels": labels,
        "rewards": torch.tensor([[1.0, 5.0], [4.0, 2.0]]),
        "prompt_lengths": torch.tensor(lengths),
    }


def parts_of(whole: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The micro-batches of a step, one prompt each; the demonstration is in the second."""
    from wavalign_fast import HybridBatch

    inputs, batches = [], []
    for prompt in (0, 1):
        rollouts = slice(2 * prompt, 2 * prompt + 2)
        rows = [2 * prompt, 2 * prompt + 1, *([4] if prompt else [])]
        inputs.append(whole["input_ids"][rows])
        batches.append(
            HybridBatch.from_padded(
                inputs[-1],
                whole["completion_mask"][rollouts],
                whole["labels"][rows],
                whole["rewards"][[prompt]],
                whole["prompt_lengths"][[prompt]],
            )
        )
    return {"inputs": inputs, "batches": batches}


@contextmanager
def readme(folder: Path) -> Iterator[dict[str, Any]]:
    input_ids = torch.randint(VOCAB, (2, 7))
    yield {"model": small_model(0), "input_ids": input_ids, "advantages": torch.randn(2, 6)}


@contextmanager
def losses(folder: Path) -> Iterator[dict[str, Any]]:
    models = {"model": small_model(0), "reference": small_model(1)}
    yield {"tokenizer": Tokenizer(), **models, **step(left=False), **parts_of(step(left=False))}


@contextmanager
def speech(folder: Path) -> Iterator[dict[str, Any]]:
    wave = torch.sin(torch.arange(16000) / 9).float()
    yield {"wave": wave, REPLACED: {"/envs/old/bin/python": sys.executable}}


@contextmanager
def families(folder: Path) -> Iterator[dict[str, Any]]:
    shutil.copytree(FAMILIES / "step_audio_2", folder / "step-audio-2-mini")
    yield {"ids": [1, 2, 3]}


@contextmanager
def family(folder: Path, name: str, published: str) -> Iterator[dict[str, Any]]:
    """A small checkpoint of a family under the name of the published one."""
    shutil.copytree(FAMILIES / name, folder / published)
    yield {}


@contextmanager
def judge(folder: Path) -> Iterator[dict[str, Any]]:
    from tests.rewards.loopback_judge import LoopbackJudge, scores
    from wavalign_fast.speech.wave_files import wave_bytes

    with LoopbackJudge(scores(4)) as server:
        wav = wave_bytes(torch.zeros(1, 1600), 16000)
        yield {"wav": wav, REPLACED: {"http://127.0.0.1:8000/v1": server.url}}


REPLACED = "text -> what stands there in a test"
"""The key of texts of a page that cannot be the same in a test, such as an address."""

SCENES: dict[str, Callable[[Path], Any]] = {
    "README.md": readme,
    "losses.md": losses,
    "speech.md": speech,
    "families.md": families,
    "judge.md": judge,
} | {
    f"family_{name}.md": partial(family, name=f"{name}{variant}", published=published)
    for name, variant, published in (
        ("vita_audio", "_plus", "VITA-Audio-Plus-Vanilla"),
        ("glm4_voice", "", "glm-4-voice-9b"),
        ("step_audio_2", "", "step-audio-2-mini"),
        ("covo_audio", "", "Covo-Audio-Chat"),
        ("kimi_audio", "", "Kimi-Audio-7B"),
    )
}
"""Page -> what it needs; other pages need nothing."""
