"""Says when, where and with which command a run was made, and what its rewards mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wavalign_fast.report.formatting import escape

if TYPE_CHECKING:
    from wavalign_fast.report.runs import Run

DIRTY = "-dirty"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run, from ``provenance.json``; what is not known is empty."""

    started: str = ""
    step: int = 0
    command: str = ""
    commit: str = ""
    machine: str = ""
    versions: str = ""
    reward_scale: str = ""

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Start":
        """Reads a start as far as its values have the right type."""
        step, cores = record.get("step"), record.get("cores")
        gpus = record.get("gpus")
        versions = record.get("versions")
        hardware = [_text(record.get("cpu"))]
        hardware += [f"{cores} cores"] if isinstance(cores, int) else []
        hardware += _counted([_text(gpu) for gpu in gpus]) if isinstance(gpus, list) else []
        hardware.append(_text(record.get("system")))
        return cls(
            started=_text(record.get("started")),
            step=step if isinstance(step, int) else 0,
            command=_text(record.get("command")),
            commit=_text(record.get("commit")),
            machine=", ".join(filter(None, hardware)),
            versions=", ".join(f"{name} {_text(version)}" for name, version in versions.items())
            if isinstance(versions, dict)
            else "",
            reward_scale=_text(record.get("reward_scale")),
        )


def provenance_section(runs: Sequence["Run"]) -> str:
    """Lists what the runs record of their making; what all arms share is written once."""
    facts = {
        "Started": [_dates(run) for run in runs],
        "Command": [_listed(start.command for start in run.starts[:1]) for run in runs],
        "Seed": [(run.settings or {}).get("train.seed", "") for run in runs],
        "Rewards": [reward_scale(run) for run in runs],
        "Commit": [_listed(_commit(start.commit) for start in run.starts) for run in runs],
        "Machine": [_listed(start.machine for start in run.starts) for run in runs],
        "Software": [_listed(start.versions for start in run.starts) for run in runs],
    }
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{_per_run(runs, values)}</dd></div>"
        for name, values in facts.items()
        if any(values)
    )
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def reward_scale(run: "Run") -> str:
    """Returns what a reward of this run means, in the words of its task; "" if it did not say."""
    return next((start.reward_scale for start in run.starts if start.reward_scale), "")


def _per_run(runs: Sequence["Run"], values: Sequence[str]) -> str:
    if len(set(values)) == 1:
        return escape(values[0])
    lines = (
        f"<li><b>{escape(run.name)}</b> {escape(value)}</li>"
        for run, value in zip(runs, values, strict=True)
        if value
    )
    return f"<ul>{''.join(lines)}</ul>"


def _dates(run: "Run") -> str:
    if not run.starts:
        return ""
    first, *later = run.starts
    text = _date(first.started)
    if later:
        times = "once" if len(later) == 1 else f"{len(later)} times"
        text += (
            f"; continued {times}, last from step {later[-1].step} at {_date(later[-1].started)}"
        )
    return text


def _date(text: str) -> str:
    """``2026-11-28T05:10:00+00:00`` → ``2026-11-28 05:10:00 UTC``."""
    return text.replace("T", " ", 1).replace("+00:00", " UTC")


def _commit(commit: str) -> str:
    clean = commit.removesuffix(DIRTY)
    return clean if clean == commit else f"{clean} with uncommitted changes"


def _listed(values: Any) -> str:
    """Joins what differs between the starts of a run."""
    return "; then ".join(dict.fromkeys(filter(None, values)))


def _counted(names: Sequence[str]) -> list[str]:
    """``["H100", "H100"] → ["2 × H100"]``."""
    return [
        f"{names.count(name)} × {name}" if names.count(name) > 1 else name
        for name in dict.fromkeys(filter(None, names))
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
