"""A synthetic run of three arms, as the trainer leaves it."""

import json
import math
import random
import shutil
import struct
import wave
from pathlib import Path

import pytest

BASE = {
    "text_accuracy": 0.36,
    "text_accuracy_greedy": 0.41,
    "speech_matches_text": 0.80,
    "speech_says_sum": 0.31,
    "speech_ce": 2.71,
    "text_ce": 0.44,
    "ended": 1.0,
    "speech_length": 22.4,
    "items": 400.0,
}
FINALS = {
    "wavalign": {"text_accuracy": 0.60, "speech_matches_text": 0.66, "speech_says_sum": 0.43},
    "rl-all": {"text_accuracy": 0.58, "speech_matches_text": 0.12, "speech_says_sum": 0.09},
    "sft-imperfect": {"text_accuracy": 0.44, "speech_matches_text": 0.79, "speech_says_sum": 0.36},
}
PROMPTS = [("eighty seven plus six", "the answer is ninety three")] + [
    (f"{left} plus two", f"the answer is {right}")
    for left, right in [("one", "three"), ("three", "five"), ("five", "seven"), ("nine", "eleven")]
]
STEPS = 300


def write_wav(path: Path, seconds: float, pitch: float) -> None:
    samples = [
        int(9000 * math.sin(2 * math.pi * pitch * n / 16000)) for n in range(int(16000 * seconds))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))


def step_record(arm: str, step: int, rng: random.Random) -> dict:
    progress = step / STEPS
    record = {
        "step": step,
        "time_s": 0.35 * step,
        "loss/policy": rng.gauss(0.02, 0.03),
        "entropy": 1.4 - 0.5 * progress + rng.gauss(0, 0.05),
        "grad_norm": abs(rng.gauss(1, 0.4)),
        "tokens_per_s": rng.gauss(9000, 400),
        "perf/forward_backward_s": 0.11,
        "perf/optimizer_s": 0.018,
        "perf/step_s": 0.34,
    }
    if arm != "rl-all":
        record["loss/anchor"] = 2.2 - 0.4 * progress + rng.gauss(0, 0.08)
    if arm != "sft-imperfect":
        record |= {
            "reward/mean": 2.4 + 1.2 * progress + rng.gauss(0, 0.3),
            "gate/lambda": 1.0 if arm == "rl-all" else 0.1 + 0.5 * (1 - math.exp(-4 * progress)),
            "kl": None if step == 7 else 0.05 * progress + abs(rng.gauss(0, 0.01)),
            "completion_length": rng.gauss(28, 1),
            "perf/rollout_s": 0.17,
            "perf/reward_s": 0.012,
            "perf/reference_s": 0.02,
        }
    return record


def write_arm(path: Path, arm: str, rng: random.Random) -> None:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"arm: {arm}\ntrain:\n  steps: {STEPS}\n", encoding="utf-8")
    lines = [json.dumps(step_record(arm, step, rng)) for step in range(1, STEPS + 1)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    evaluation = {
        "arm": arm,
        "seed": 0,
        "steps": STEPS,
        "seconds": 104.2,
        "base": BASE,
        "final": {**BASE, **FINALS[arm], "speech_ce": 2.7 + rng.random()},
    }
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "config.json").write_text("{}", encoding="utf-8")
    samples = []
    for index, (prompt, reference) in enumerate(PROMPTS):
        wav = f"wav/{index:03d}.wav"
        write_wav(path / wav, 1.0, 200 + 40 * index)
        heard = reference if arm != "rl-all" else "the answer is the"
        samples.append(
            {
                "prompt": prompt,
                "reference": reference,
                "text": reference,
                "heard": heard,
                "wav": wav,
            }
        )
    (path / "samples.json").write_text(json.dumps(samples), encoding="utf-8")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A finished run of three arms, to be copied."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("finished")
    for arm in FINALS:
        write_arm(path / arm, arm, rng)
    return path


@pytest.fixture
def run_dir(finished_run, tmp_path) -> Path:
    """A finished run of three arms, called demo."""
    for arm in FINALS:  # in the order they were trained
        shutil.copytree(finished_run / arm, tmp_path / "demo" / arm)
    return tmp_path / "demo"
