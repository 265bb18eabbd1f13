"""The run directory: what a run leaves behind, and the refusal to write over another one.

``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoint/``, ``evaluation.json``,
``samples.json``, ``wav/`` and, over one or several arms, ``report.html``.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from wavalign_fast.config import RunConfig
from wavalign_fast.config_layers import (
    differing_keys,
    dump_config,
    read_config_file,
    resolve_config,
)
from wavalign_fast.data.records import Evaluation
from wavalign_fast.errors import UserError
from wavalign_fast.train.files import write_json, write_text, write_wav

CONFIG_FILE = "config.yaml"
EVALUATION_FILE = "evaluation.json"
CHANGEABLE_ON_RESUME = {
    "name",
    "train.steps",
    "train.threads",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_nonfinite_steps",
}


def check_run(path: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuses to write over another run; changes nothing."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if overwrite:
        if not _is_run(path):
            raise UserError(f"{path} is not a run directory; it is not overwritten")
    elif not resume:
        raise UserError(f"{path} exists; give --resume, --overwrite or another --name")
    elif not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} cannot be resumed: {CONFIG_FILE} is missing")
    else:
        _check_same_run(path, config)


def start_run(path: Path, config: RunConfig, *, overwrite: bool) -> None:
    """Makes the directory and records the config; with ``overwrite`` the old run goes first."""
    if overwrite and path.exists():
        shutil.rmtree(path)
    write_text(path / CONFIG_FILE, dump_config(config))


def read_run_config(path: Path) -> RunConfig:
    """The resolved config of a run directory."""
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"no run in {path}: {CONFIG_FILE} is missing")
    return resolve_config([read_config_file(path / CONFIG_FILE)])


def arm_directories(path: Path) -> list[Path]:
    """The run directories under ``path``, in the order they were trained; itself if it is one."""
    if (path / CONFIG_FILE).is_file():
        return [path]
    found = [config.parent for config in path.glob(f"*/{CONFIG_FILE}")]
    if not found:
        raise UserError(f"no run in {path}: {CONFIG_FILE} is missing")
    return sorted(found, key=lambda arm: (arm / CONFIG_FILE).stat().st_mtime_ns)


def finished_metrics(path: Path, config: RunConfig) -> dict[str, float] | None:
    """Final metrics of the run at ``path``; None unless it was trained to the end and evaluated."""
    try:
        record = json.loads((path / EVALUATION_FILE).read_text(encoding="utf-8"))
        return dict(record["final"]) if record["steps"] == config.train.steps else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_evaluation(
    path: Path,
    config: RunConfig,
    *,
    seconds: float,
    base: dict[str, float] | None,
    final: Evaluation | None,
) -> None:
    """Writes ``samples.json`` with its WAV files, then ``evaluation.json``."""
    samples = []
    for index, sample in enumerate(final.samples if final else []):
        wav = f"wav/{index:03d}.wav"
        write_wav(path / wav, sample.waveform, sample.sample_rate)
        samples.append(
            {
                "prompt": sample.prompt,
                "reference": sample.reference,
                "text": sample.text,
                "heard": sample.heard,
                "wav": wav,
            }
        )
    write_json(path / "samples.json", samples)
    record: dict[str, Any] = {
        "arm": config.arm or config.recipe,
        "seed": config.train.seed,
        "steps": config.train.steps,
        "seconds": round(seconds, 3),
        "base": base or {},
        "final": final.metrics if final else {},
    }
    write_json(path / EVALUATION_FILE, record)


def _check_same_run(path: Path, config: RunConfig) -> None:
    before = read_run_config(path)
    for key in differing_keys(before, config):
        if key not in CHANGEABLE_ON_RESUME:
            raise UserError(
                f"{path} was started with another {key}; --resume wants the same, "
                f"see {path / CONFIG_FILE}"
            )


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or any(path.glob(f"*/{CONFIG_FILE}"))
