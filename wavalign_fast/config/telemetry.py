"""Where a run reports its metrics, and what it records along with them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from wavalign_fast.config.group import LONGEST_NAME, AsTuple, AtLeastOne, Group

DEFAULT_PROJECT = "wavalign-fast"


class TelemetryConfig(Group):
    """Where metrics go besides ``metrics.jsonl``, and what is recorded along with them."""

    tensorboard: bool = True
    """Also write TensorBoard event files, if the package is installed."""
    tracker: Literal["wandb", "trackio"] | None = None
    """Also log metrics to Weights & Biases or to trackio; the package must be installed."""
    project: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)] = DEFAULT_PROJECT
    """Project of the tracker. The run there is called as its directory, an arm RUN-ARM."""
    offline: bool = False
    """Keep what wandb would send in ``wandb/`` of the run, for ``wandb sync`` later."""
    profile_steps: Annotated[tuple[AtLeastOne, AtLeastOne], AsTuple] | None = None
    """[first, last] step to record with torch's profiler, as a trace in ``profile/``."""

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Self:
        if self.tracker is None and self.project != DEFAULT_PROJECT:
            raise ValueError(f"project {self.project!r} given without a tracker, wanted both")
        if self.offline and self.tracker != "wandb":
            raise ValueError(
                f"offline true given with tracker {self.tracker or 'null'}, wanted tracker wandb "
                "(trackio keeps its data on this machine in any case)"
            )
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(
                f"profile_steps {list(self.profile_steps)} given, wanted [first, last] with "
                "first <= last"
            )
        return self
