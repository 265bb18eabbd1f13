"""Why a rival is ahead, in words. Whether one is ahead is read from the figures."""

from .rows import Place

WHY = {
    ("time", "torch-compile"): (
        "the compiler fuses the softmax into two passes over logits in the operands' type, which "
        "it keeps whole: fast while they fit, at the price that the memory and error columns show"
    ),
    ("time", "cce"): (
        "its torch.compile path keeps the whole logits in the operands' type, like a plain "
        "compiled cross-entropy, and reads them twice"
    ),
    ("time", "torch"): (
        "at this size the full logits fit the caches, and the fixed cost of a call decides"
    ),
}
UNKNOWN = "not yet explained"


def why(place: Place) -> str:
    """The reason that is known for a rival being ahead in a metric."""
    return WHY.get((place.metric.key, place.best.name), UNKNOWN)
