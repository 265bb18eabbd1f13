"""How a run is spread over ranks, ``parallel.*`` in a config."""

from typing import Annotated, Literal

from pydantic import Field

from wavalign_fast.config.group import Group

MOST_RANKS = 1_000_000
LONGEST_WAIT_S = 7 * 24 * 3600.0


class ParallelConfig(Group):
    """How the ranks that torchrun starts share the model. One process has nothing to share."""

    replicate: Annotated[int, Field(ge=1, le=MOST_RANKS)] = 1
    """Copies of the model. With several, each copy is sharded over ranks/replicate ranks (HSDP)."""
    shard: Annotated[int, Field(ge=0, le=MOST_RANKS)] = 0
    """Ranks that share one copy of weights and optimizer state; 0 = all ranks / replicate."""
    head: Literal["gathered", "sharded"] = "gathered"
    """gathered: each rank multiplies its rows with the whole output head, which is sent to it for
    each micro-batch. sharded: each rank keeps its slice of the vocabulary and gets all ranks' rows,
    which is less to send where rows are few; not for a tied head or one with a LoRA."""
    reshard: bool = True
    """Free the whole weights of a block after its forward pass. false keeps them until the last
    backward pass of the step: more memory, fewer gathers."""
    timeout_s: Annotated[float, Field(gt=0.0, le=LONGEST_WAIT_S, allow_inf_nan=False)] = 1800.0
    """Seconds that a rank waits for the others before the run ends with an error."""
