"""Why a rival is ahead, in words. Whether one is ahead is read from the figures."""

from typing import Any

from .rows import Place, error_name

COMPILED = (
    "torch.compile fuses the softmax into passes over the whole logits, which it keeps in the "
    "operands' type"
)
WHY = {
    ("time", "torch-compile"): COMPILED,
    ("time", "cce"): COMPILED,
    ("memory", "torch-compile"): COMPILED,
    ("memory", "cce"): COMPILED,
    ("memory", "torch-lce"): (
        "it holds the logits of 256 rows at a time, which costs it time; with a smaller "
        "memory_budget ours does the same"
    ),
}
SMALL_BYTES = 32 * 2**20
SMALL = {
    "time": "the full logits fit in the caches, so the fixed cost of a call decides",
    "memory": "the threads' scratch tiles, a few MiB for any shape, outweigh such small logits",
}
CHANCE = "both are sums of float32 roundings over many log-probs: which is smaller is chance"
UNKNOWN = "not yet explained"


def why(place: Place, case: dict[str, Any]) -> str:
    """The known reason why a rival is ahead in a metric of a case."""
    item = 2 if case["dtype"] == "bf16" else 4
    small = case["shape"]["live"] * case["shape"]["vocab"] * item <= SMALL_BYTES
    if small and place.metric.key in SMALL:
        return SMALL[place.metric.key]
    if place.metric.key == "error" and case["dtype"] == "fp32" and error_name(case) == "loss":
        return CHANCE
    return WHY.get((place.metric.key, place.best.name), UNKNOWN)
