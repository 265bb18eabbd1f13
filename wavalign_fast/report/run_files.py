"""Reads the files of a run as far as possible, and notes what is missing or damaged."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError
from wavalign_fast.report.audio import locate
from wavalign_fast.report.figures import FIGURES
from wavalign_fast.report.provenance import Start
from wavalign_fast.report.settings import flat_settings

LARGEST, SMALLEST = 3.5e38, 1e-38
"""The range of float32: no trained value is outside, and arithmetic on one could overflow."""
SHARES = {figure.key for figure in FIGURES if figure.share}
NOT_METRICS = {"step", "time_s"}
MAX_NAMED = 3

Curves = dict[str, list[tuple[float, float]]]


class RunFiles:
    """Reads the files of a run directory; ``notes`` lists what is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []

    def config(self) -> str:
        """Returns the text of the configuration."""
        data = self._read("config.yaml") or b""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.notes.append("config.yaml is not UTF-8 text")
            return data.decode("utf-8", "replace")

    def settings(self, text: str) -> dict[str, str] | None:
        """Returns the values of the configuration by dotted key; ``None`` if it is damaged."""
        try:
            return flat_settings(text)
        except UserError as error:
            self.notes.append(f"config.yaml cannot be read: {error}")
            return None

    def starts(self) -> list[Start]:
        """Returns when, where and how the run was started; older runs did not record it."""
        if not is_file(self.path / "provenance.json"):
            return []
        given = self._json("provenance.json", dict)
        if given is None:
            return []
        starts = given.get("starts")
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            self.notes.append("provenance.json is damaged and left out")
            return []
        return [Start.of(start) for start in starts]

    def evaluation(self) -> dict[str, Any]:
        """Returns the content of ``evaluation.json``, with every number checked."""
        if not is_file(self.path / "evaluation.json"):
            self.notes.append("evaluation.json is missing: the run is still going or was stopped")
            return {}
        given = self._json("evaluation.json", dict)
        if given is None:
            return {}
        known = {name: self._at_least_0(name, given.get(name)) for name in ("steps", "seconds")}
        arm = given.get("arm")
        return {
            **known,
            "arm": arm if isinstance(arm, str) else None,
            "base": self._figures("base", given.get("base", {})),
            "final": self._figures("final", given.get("final", {})),
        }

    def curves(self) -> Curves:
        """Returns (step, value) pairs by metric name, without values that are not finite."""
        curves: Curves = {}
        lines = (self._read("metrics.jsonl") or b"").split(b"\n")
        damaged, strange = [], 0
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            record = _parsed(line)
            step = _number(record.get("step")) if isinstance(record, dict) else None
            if step is None:
                damaged.append(number)
                continue
            for name, value in record.items():
                if name in NOT_METRICS or value is None:
                    continue
                if (seen := _number(value)) is not None:
                    curves.setdefault(name, []).append((step, seen))
                elif not isinstance(value, float) or math.isfinite(value):
                    strange += 1
        if damaged and damaged[-1] == len(lines):
            damaged.pop()
            self.notes.append("metrics.jsonl ends in an incomplete line")
        if damaged:
            self.notes.append(f"metrics.jsonl: left out {_listed('line', damaged)}: not a record")
        if strange:
            self.notes.append(f"metrics.jsonl: left out {strange} values that are not numbers")
        return curves

    def base_samples(self) -> list[dict[str, str]]:
        """Returns the answers of the base model; older runs did not keep them."""
        name = "base_samples.json"
        return self.samples(name) if is_file(self.path / name) else []

    def samples(self, file: str = "samples.json") -> list[dict[str, str]]:
        """Returns the answers as text, with ``wav`` only if the file can be played."""
        given = self._json(file, list) or []
        samples = [
            {str(key): str(value) for key, value in sample.items() if value is not None}
            for sample in given
            if isinstance(sample, dict)
        ]
        if len(samples) < len(given):
            self.notes.append(f"{file}: left out {len(given) - len(samples)} that are not samples")
        failures: dict[str, list[str]] = {}
        for sample in samples:
            if isinstance(reason := locate(self.path, sample.get("wav", "")), str):
                name = sample.pop("wav", "a sample's wav")
                failures.setdefault(reason, []).append(name)
        for reason, names in failures.items():
            self.notes.append(f"{_listed('', names)} {reason}")
        return samples

    def checkpoint(self) -> None:
        """Notes if a finished run has lost its model."""
        if not is_file(self.path / "checkpoint" / "config.json"):
            self.notes.append("checkpoint/ is missing: the model cannot be used any more")

    def _read(self, name: str) -> bytes | None:
        if not is_file(self.path / name):
            self.notes.append(f"{name} is missing")
            return None
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            self.notes.append(f"{name} cannot be read ({error.strerror})")
            return None

    def _json(self, name: str, kind: type) -> Any:
        data = self._read(name)
        value = None if data is None else _parsed(data)
        if data is not None and not isinstance(value, kind):
            self.notes.append(f"{name} is damaged and left out")
            return None
        return value

    def _at_least_0(self, name: str, value: Any) -> float | None:
        number = _number(value)
        if number is not None and number >= 0:
            return number
        self.notes.append(f"evaluation.json: {name} is {_short(value)}, wanted 0 or more")
        return None

    def _figures(self, table: str, values: Any) -> dict[str, float]:
        if not isinstance(values, dict):
            self.notes.append(f"evaluation.json: {table} is {_short(values)}, wanted figures")
            return {}
        figures = {}
        for name, value in values.items():
            number = _number(value)
            if number is None:
                wanted = "a finite number"
            elif name in SHARES and not 0 <= number <= 1:
                wanted = "0 to 1"
            elif name == "items" and number < 1:
                wanted = "at least 1"
            else:
                figures[name] = number
                continue
            seen = f"{table}.{name} is {_short(value)}"
            self.notes.append(f"evaluation.json: {seen}, wanted {wanted}")
        return figures


def is_file(path: Path) -> bool:
    """``Path.is_file``, but ``False`` without permission to look."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number) or abs(number) > LARGEST:
        return None
    return number if abs(number) >= SMALLEST else 0.0


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _listed(what: str, items: Sequence[object]) -> str:
    """``"lines 3, 9, 12 and 5 more"``."""
    named = ", ".join(str(item) for item in items[:MAX_NAMED])
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    plural = "s" if what and len(items) > 1 else ""
    return f"{what}{plural} {named}{more}".strip()
