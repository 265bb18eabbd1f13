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
        "it holds the logits of 256 rows at a time, at the price of its time; a smaller "
        "memory_budget does the same to ours"
    ),
}
SMALL_BYTES = 32 * 2**20
SMALL = {
    "time": "the full logits fit the caches, and the fixed cost of a call decides",
    "memory": "tiles in the threads' scratch memory, a few MiB at any shape, outweigh such logits",
}
CHANCE = "float32 roundings of many log-probs, summed: which sum is the smaller is chance"
UNKNOWN = "not yet explained"


def why(place: Place, case: dict[str, Any]) -> str:
    """The reason that is known for a rival being ahead in a metric of a case."""
    item = 2 if case["dtype"] == "bf16" else 4
    small = case["shape"]["live"] * case["shape"]["vocab"] * item <= SMALL_BYTES
    if small and place.metric.key in SMALL:
        return SMALL[place.metric.key]
    if place.metric.key == "error" and case["dtype"] == "fp32" and error_name(case) == "loss":
        return CHANCE
    return WHY.get((place.metric.key, place.best.name), UNKNOWN)
