"""Logs metrics to an experiment tracker: Weights & Biases or trackio. Both are optional."""

import importlib
import math
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError, one_line
from wavalign_fast.redaction import HIDDEN, is_secret
from wavalign_fast.train.metric_writers import OptionalWriter
from wavalign_fast.train.owned_files import read_marker, recorded_arms, write_marker


def check_tracker(name: str | None) -> None:
    """Raises ``UserError`` if the tracker's package is not installed; does not import it."""
    if name is None:
        return
    spec = find_spec(name)
    # A folder of that name, such as the wandb/ of a run, is found as a package without a file.
    if spec is None or spec.origin is None:
        raise UserError(
            f"telemetry.tracker: {name} given, but the package {name} is not installed; "
            f"pip install {name}, or telemetry.tracker=null"
        )


class TrackerWriter(OptionalWriter):
    """Logs to a run of wandb or trackio; a resumed run continues the same one there.

    A resumed run repeats the steps after its checkpoint with the same values. Of these wandb keeps
    the first ones and trackio both. The metrics are in ``metrics.jsonl`` too, so an error while
    training is only logged, once.
    """

    def __init__(self, run: Any, name: str) -> None:
        super().__init__(name)
        self._run = run

    def write(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Logs the metrics that are finite."""
        with self._attempt():
            if self._run is not None:
                finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
                self._run.log({"time_s": time_s, **finite}, step=step)

    def close(self) -> None:
        """Waits until everything is stored or sent."""
        with self._attempt():
            if self._run is not None:
                self._run.finish()

    def _give_up(self) -> None:
        self._run = None


def open_tracker(directory: Path, config: RunConfig) -> TrackerWriter:
    """Opens the tracker that the configuration names.

    Raises:
        UserError: the package is missing or broken, or the tracker refuses, for example because
            nobody is logged in.
    """
    name = config.telemetry.tracker
    assert name is not None
    check_tracker(name)
    start = _start_wandb if name == "wandb" else _start_trackio
    try:
        run = start(importlib.import_module(name), directory, config)
    except (Exception, SystemExit) as error:  # the package may be of any version
        other = "telemetry.offline=true" if name == "wandb" else "telemetry.tracker=null"
        raise UserError(
            f"telemetry.tracker: {name} cannot start ({one_line(error)}); log in, or {other}"
        ) from error
    return TrackerWriter(run, name)


def _start_wandb(wandb: Any, directory: Path, config: RunConfig) -> Any:
    number, _ = _run_id(directory)
    return wandb.init(
        project=config.telemetry.project,
        name=run_name(directory),
        id=number,
        resume="allow",
        dir=str(directory),
        mode="offline" if config.telemetry.offline else None,
        config=settings(config),
        # Its own lines would break up the progress display, and it would capture ours.
        settings=wandb.Settings(console="off", silent=True),
    )


def _start_trackio(trackio: Any, directory: Path, config: RunConfig) -> Any:
    _, continued = _run_id(directory)
    return trackio.init(
        project=config.telemetry.project,
        name=run_name(directory),
        # It knows runs by name: a new run must not continue an older one of the same name.
        resume="allow" if continued else "never",
        config=settings(config),
        embed=False,
    )


def run_name(directory: Path) -> str:
    """Returns the name of a run in the tracker: that of its directory, of an arm RUN-ARM."""
    place = directory.resolve()
    if place.name in recorded_arms(place.parent):
        return f"{place.parent.name}-{place.name}"
    return place.name


def settings(config: RunConfig) -> dict[str, Any]:
    """Returns the configuration as it may be published: without the values of secret keys."""
    return _without_secrets(config.model_dump(mode="json"))


def _without_secrets(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_secrets(value)
        if isinstance(value, Mapping)
        else HIDDEN
        if is_secret(key) and value is not None
        else value
        for key, value in tree.items()
    }


def _run_id(directory: Path) -> tuple[str, bool]:
    """Returns the id of the run in the tracker, and whether it was there before."""
    known = (read_marker(directory) or {}).get("tracker_id")
    if isinstance(known, str):
        return known, True
    number = uuid.uuid4().hex[:12]
    write_marker(directory, tracker_id=number)
    return number, False
