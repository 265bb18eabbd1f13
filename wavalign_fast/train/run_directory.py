"""Reads and writes the run directory, and refuses to write over another run.

A run leaves ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoint/``,
``evaluation.json``, ``samples.json``, ``base_samples.json``, ``wav/``, ``provenance.json`` and, for
one or several arms, ``report.html``.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wavalign_fast.config.layers import differing_keys, dump_config, resolve_config
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.config.telemetry import TelemetryConfig
from wavalign_fast.config.yaml import read_config_file
from wavalign_fast.data.records import Evaluation, Example, Preference, SpokenSample
from wavalign_fast.errors import UserError, one_line, shown
from wavalign_fast.outputs import TEMPORARY
from wavalign_fast.speech.wave_files import write_wave
from wavalign_fast.train.atomic_files import remove, write_json, write_text
from wavalign_fast.train.directory_lock import LOCK_FILE
from wavalign_fast.train.metric_writers import read_metric_lines
from wavalign_fast.train.owned_files import (
    BASE_SAMPLES_FILE,
    CHECKPOINT,
    CONFIG_FILE,
    EVALUATION_FILE,
    MARKER_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    checkpoint_contents,
    own_paths,
    read_json_object,
    read_marker,
    recorded_arms,
    remove_half_written,
    write_marker,
)

SERVICE_KEYS = (
    "url", "key_variable", "concurrency", "requests_per_minute", "timeout_s", "deadline_s",
    "group_deadline_s", "attempts", "first_wait_s", "longest_wait_s", "max_missing", "cache",
    "price_in", "price_out",
)  # fmt: skip
"""Options of a judge that say where it is and how long it may take, but not how it judges."""

CHANGEABLE_ON_RESUME = {
    "name",
    "train.steps",
    "train.threads",
    "train.log_every",
    "train.eval_every",
    "train.early_stop",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_nonfinite_steps",
    "train.async_checkpoint",
    "rollout.keep_copy",
    # Where a server is, and how long it may take.
    "rollout.vllm.url",
    "rollout.vllm.command",
    "rollout.vllm.options",
    "rollout.vllm.weights_dir",
    "rollout.vllm.timeout_s",
    "rollout.vllm.start_timeout_s",
    "task.cache",
    *(f"task.judge.{key}" for key in SERVICE_KEYS),
    "parallel.replicate",
    "parallel.shard",
    "parallel.reshard",
    "parallel.timeout_s",
    *(f"telemetry.{key}" for key in TelemetryConfig.model_fields),
    # These compute the same sums in another order or by other code, and so round differently.
    "model.attention",
    "model.activation_checkpointing",
    "model.compile",
    "model.kernels",
    "parallel.head",
    "loss.backend",
    "train.block_tokens",
}
"""Keys that say how a run is computed, shown and stored, but not what it learns from what."""


def check_run(path: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Raises ``UserError`` if ``path`` cannot take this run; changes nothing."""
    if not _holds_something(path):
        return
    if overwrite:
        if read_marker(path) is None:
            raise UserError(
                f"{path} is not a run directory ({MARKER_FILE} is missing or damaged); "
                "it is not overwritten"
            )
        own_paths(path)
    elif (arms := recorded_arms(path)) and not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"{path} holds several arms ({', '.join(arms)}); give --arms to continue some of "
            "them, or another --name"
        )
    elif not resume:
        raise UserError(f"{path} exists; give {_other_ways(path)}")
    elif not (path / CONFIG_FILE).is_file():
        advice = _other_ways(path)
        raise UserError(f"{path} cannot be resumed: {CONFIG_FILE} is missing; give {advice}")
    else:
        _check_same_run(path, config)
        if finished_metrics(path, config) is None:
            check_steps(path, config, checkpoint_contents(path / CHECKPOINT).get("step"))
            read_metric_lines(path / METRICS_FILE)


def _other_ways(path: Path) -> str:
    """Lists the options with which a run can go to ``path``, or elsewhere."""
    ways = ["--resume"] if (path / CONFIG_FILE).is_file() else []
    ways += ["--overwrite"] if read_marker(path) is not None else []
    return " or ".join(filter(None, [", ".join(ways), "another --name"]))


def check_steps(path: Path, config: RunConfig, done: Any) -> None:
    """Raises ``UserError`` if the run has ``done`` more steps than the config wants."""
    if isinstance(done, int) and done > config.train.steps:
        raise UserError(
            f"train.steps: {config.train.steps} given, {path} is at step {done} already"
        )


def check_folder_of_arms(path: Path, *, resume: bool) -> None:
    """Raises ``UserError`` if several arms would go into a run of one arm or a foreign folder."""
    if not _holds_something(path) or "arms" in (read_marker(path) or {}):
        return
    if (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} is a run of one arm; give several arms another --name")
    if not resume:
        raise UserError(f"{path} exists and is not a folder of arms; give another --name")


def start_run(path: Path, config: RunConfig, *, data: dict[str, Any]) -> None:
    """Marks the directory as a run over ``data`` (a fingerprint) and writes its config."""
    remove_half_written(path)
    write_marker(path, data=data)
    write_text(path / CONFIG_FILE, dump_config(config))


def add_arm(path: Path, arm: str) -> None:
    """Records ``arm`` in the marker of the folder of several arms."""
    write_marker(path, arms=list(dict.fromkeys([*recorded_arms(path), arm])))


def remove_arm(path: Path, arm: str) -> None:
    """Takes ``arm`` out of the marker of the folder of several arms, and the marker with the last.

    The arm's own files stay.
    """
    arms = [name for name in recorded_arms(path) if name != arm]
    if arms:
        write_marker(path, arms=arms)
    else:
        remove(path / MARKER_FILE)


def fingerprint(
    examples: Iterable[Example], preferences: Iterable[Preference] = ()
) -> dict[str, Any]:
    """Identifies training examples and offline pairs by number and a hash of their content."""
    count, digest = 0, hashlib.sha256()
    for example in examples:
        count += 1
        record = repr((example.prompt_ids, example.prompt, example.reference))
        if example.answer_ids or example.record:
            record += repr((example.answer_ids, example.record))
        digest.update(record.encode("utf-8", "backslashreplace"))
    for pair in preferences:
        count += 1
        digest.update(repr(pair).encode("utf-8", "backslashreplace"))
    return {"examples": count, "sha256": digest.hexdigest()}


def check_same_data(path: Path, data: dict[str, Any]) -> None:
    """Raises ``UserError`` if the run was started with other training examples."""
    before = (read_marker(path) or {}).get("data")
    if not isinstance(before, dict) or before == data:
        return
    raise UserError(
        f"{path} was started with other training data ({before.get('examples')} examples then, "
        f"{data['examples']} now, contents differ); --resume wants the same data"
    )


def changes(path: Path, config: RunConfig) -> list[str]:
    """Lists the settings in which a resumed run differs from before, one line each."""
    before = read_run_config(path)
    lines = [
        f"{key}: {shown(_value(before, key))} before, {shown(_value(config, key))} now"
        for key in differing_keys(before, config)
    ]
    if before.train.steps != config.train.steps and config.optimizer.schedule != "constant":
        lines.append(
            f"optimizer.schedule: the {config.optimizer.schedule} from here on is that of a run of "
            f"{config.train.steps} steps"
        )
    return lines


def read_run_config(path: Path) -> RunConfig:
    """Reads the resolved config of a run directory."""
    file = path / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"no run in {path}: {CONFIG_FILE} is missing")
    tree = read_config_file(file)
    try:
        return resolve_config([tree])
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def arm_directories(path: Path) -> list[Path]:
    """Returns the run directories in ``path`` by training order, or ``path`` if it is one."""
    if (path / CONFIG_FILE).is_file():
        return [path]
    found = [config.parent for config in path.glob(f"*/{CONFIG_FILE}")]
    if not found:
        raise UserError(f"no run in {path}: {CONFIG_FILE} is missing")
    return sorted(found, key=lambda arm: (arm / CONFIG_FILE).stat().st_mtime_ns)


def finished_metrics(path: Path, config: RunConfig) -> dict[str, float] | None:
    """Returns the final metrics of a run, or ``None`` unless it is trained and evaluated."""
    record = read_json_object(path / EVALUATION_FILE)
    final = record.get("final")
    if record.get("steps") != config.train.steps or not isinstance(final, dict):
        return None
    return {name: float(value) for name, value in final.items() if isinstance(value, int | float)}


def write_evaluation(
    path: Path,
    config: RunConfig,
    *,
    seconds: float,
    base: Evaluation | None,
    final: Evaluation | None,
) -> None:
    """Writes the answers of the base and of the trained model, then ``evaluation.json``."""
    _write_samples(path, BASE_SAMPLES_FILE, base, wav_prefix="base-")
    _write_samples(path, SAMPLES_FILE, final)
    record: dict[str, Any] = {
        "arm": config.arm or config.recipe,
        "seed": config.train.seed,
        "steps": config.train.steps,
        "seconds": round(seconds, 3),
        "base": base.metrics if base else {},
        "final": final.metrics if final else {},
    }
    write_json(path / EVALUATION_FILE, record)


def _write_samples(
    path: Path, name: str, evaluation: Evaluation | None, *, wav_prefix: str = ""
) -> None:
    """Writes the answers of an evaluation as ``name``, and those that have sound as WAV files."""
    records = []
    for index, sample in enumerate(evaluation.samples if evaluation else []):
        wav = None if sample.waveform is None else f"wav/{wav_prefix}{index:03d}.wav"
        if wav is not None:
            write_wave(path / wav, sample.waveform, sample.sample_rate)
        records.append(_sample_record(sample, wav))
    write_json(path / name, records)


def _sample_record(sample: SpokenSample, wav: str | None) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "reference": sample.reference,
        "text": sample.text,
        "heard": sample.heard,
        "wav": wav,
        "reward": sample.reward,
    }


def _may_change(key: str) -> bool:
    """Whether ``--resume`` may change a key, or the group that holds it."""
    return any(key == it or key.startswith(f"{it}.") for it in CHANGEABLE_ON_RESUME)


def _check_same_run(path: Path, config: RunConfig) -> None:
    before = read_run_config(path)
    others = [key for key in differing_keys(before, config) if not _may_change(key)]
    if others:
        then_now = (
            f"{key} ({shown(_value(before, key))} then, {shown(_value(config, key))} now)"
            for key in others
        )
        raise UserError(
            f"{path} was started with another {', '.join(then_now)}; --resume wants the same, "
            f"see {path / CONFIG_FILE}"
        )


def _holds_something(path: Path) -> bool:
    """Whether ``path`` holds anything besides a lock and what a process killed at once leaves."""
    if not os.path.lexists(path):
        return False
    try:
        names = os.listdir(path)
        return any(name != LOCK_FILE and not TEMPORARY.fullmatch(name) for name in names)
    except OSError as error:
        if os.path.islink(path):
            raise UserError(f"{path} is a link to {os.readlink(path)}: {error.strerror}") from error
        raise UserError(f"{one_line(error)}; wanted a directory for a run") from error


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config.model_dump()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
