"""What to change in a run that does not fit, each change estimated as the run itself is."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from wavalign_fast.config.layers import merge, parse_overrides, settle
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError
from wavalign_fast.plan.estimate import Estimate
from wavalign_fast.train.policy import mesh_shape

MOST_RANKS = 64
"""More ranks than this are not suggested."""
ENOUGH = 2
"""After so many changes that fit, no more are tried."""
ADAPTERS = "model.lora.rank=64"
"""Adapters of a rank that is usual for a large model."""


class Plan(NamedTuple):
    """A run's configuration and the number of its ranks."""

    config: RunConfig
    ranks: int
    tied: bool = False
    """Whether the model's output head is its input embedding, which cannot be sharded."""


class Change(NamedTuple):
    """A change of a run, and what the run needs with it."""

    words: tuple[str, ...]
    """As the command takes them, for example ``model.activation_checkpointing=true``."""
    estimate: Estimate


Candidates = Iterator[tuple[tuple[str, ...], Plan]]
"""Words and the run that they make, the mildest first."""


def advice(plan: Plan, estimated: Callable[[Plan], Estimate], gpu_bytes: float) -> list[Change]:
    """Returns changes after which a run fits, or at least needs less; of each kind the best.

    Stops after ``ENOUGH`` that fit, because an estimate takes seconds. If no change alone is
    enough, the last entry has several that are together.

    Args:
        plan: a run that does not fit.
        estimated: estimates a run; it may leave out phases of a run that does not fit anyway.
    """
    needed = estimated(plan).needed
    found: list[Change] = []
    fitting = 0
    for kind in KINDS:
        best: Change | None = None
        for words, changed in kind(plan):
            change = _change(words, changed, estimated)
            if change is None:
                break
            best = change
            if best.estimate.needed <= gpu_bytes:
                fitting += 1
                break
        if best is not None and best.estimate.needed < needed:
            found.append(best)
        if fitting == ENOUGH:
            break
    return found if fitting else [*found, *_together(plan, estimated, gpu_bytes)]


def _together(
    plan: Plan, estimated: Callable[[Plan], Estimate], gpu_bytes: float
) -> Iterator[Change]:
    """Makes one change after the other, as far as each kind goes, until the run fits."""
    before: tuple[str, ...] = ()
    for kind in KINDS:
        furthest: tuple[tuple[str, ...], Plan] = (), plan
        for words, changed in kind(plan):
            change = _change(before + words, changed, estimated)
            if change is None:
                break
            furthest = words, changed
            if change.estimate.needed <= gpu_bytes:
                yield change
                return
        before, plan = before + furthest[0], furthest[1]


def _change(
    words: tuple[str, ...], plan: Plan, estimated: Callable[[Plan], Estimate]
) -> Change | None:
    """``None`` for what this model or this machine cannot have, such as adapters without peft."""
    try:
        return Change(words, estimated(plan))
    except UserError:
        return None


def _checkpointing(plan: Plan) -> Candidates:
    if not plan.config.model.activation_checkpointing:
        yield _set(plan, "model.activation_checkpointing=true")


def _sharded_head(plan: Plan) -> Candidates:
    parallel = plan.config.parallel
    own = not plan.tied and not plan.config.model.lora.head
    if parallel.head == "gathered" and own and mesh_shape(parallel, plan.ranks)[1] > 1:
        yield _set(plan, "parallel.head=sharded")


def _smaller_blocks(plan: Plan) -> Candidates:
    tokens = plan.config.train.block_tokens
    while tokens > plan.config.rollout.max_new_tokens:
        tokens //= 2
        yield _set(plan, f"train.block_tokens={tokens}")


def _more_ranks(plan: Plan) -> Candidates:
    """Shards each copy over more ranks; a fixed number of them gives way to all."""
    words, plan = _set(plan, *(["parallel.shard=0"] if plan.config.parallel.shard else []))
    ranks = 2 * plan.ranks
    while ranks <= MOST_RANKS:
        yield (f"--ranks {ranks}", *words), plan._replace(ranks=ranks)
        ranks *= 2


def _fewer_bytes(plan: Plan) -> Candidates:
    """Weights and gradients of 2 bytes, moments of 1; updates are rounded stochastically."""
    if plan.config.optimizer.name != "adamw8bit":
        yield _set(plan, *_in_bfloat16(plan), "optimizer.name=adamw8bit")


def _adapters(plan: Plan) -> Candidates:
    """Trains another, smaller thing; so it comes last."""
    if not plan.config.model.lora.rank:
        yield _set(plan, ADAPTERS)
        if narrow := _in_bfloat16(plan):
            yield _set(plan, *narrow, ADAPTERS)


def _in_bfloat16(plan: Plan) -> list[str]:
    """What is set for weights that are stored in bfloat16; nothing if they are."""
    model = plan.config.model
    if model.dtype == "bfloat16":
        return []
    wide = model.compute_dtype == "float32"
    return ["model.dtype=bfloat16", *(["model.compute_dtype=bfloat16"] if wide else [])]


KINDS: Sequence[Callable[[Plan], Candidates]] = (
    _checkpointing,
    _more_ranks,
    _sharded_head,
    _smaller_blocks,
    _fewer_bytes,
    _adapters,
)


def _set(plan: Plan, *settings: str) -> tuple[tuple[str, ...], Plan]:
    given = settle(parse_overrides(settings), RunConfig)
    config = RunConfig.model_validate(merge(plan.config.model_dump(), given))
    return settings, plan._replace(config=config)
