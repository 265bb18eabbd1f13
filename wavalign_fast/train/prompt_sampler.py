"""Chooses the next training examples, with a state that can be saved."""

import random
from typing import Any


class PromptSampler:
    """Iterates over shuffled epochs of ``size`` examples; the state is the number consumed.

    Nothing is prefetched, so a resumed run neither repeats nor skips an example.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"training examples: {size} given, wanted at least 1")
        self.size = size
        self.seed = seed
        self.consumed = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def take(self, count: int) -> list[int]:
        """Returns the next ``count`` indices, across the end of an epoch if necessary."""
        indices: list[int] = []
        while len(indices) < count:
            epoch, start = divmod(self.consumed, self.size)
            part = self._order(epoch)[start : start + count - len(indices)]
            indices += part
            self.consumed += len(part)
        return indices

    def _order(self, epoch: int) -> list[int]:
        """Returns the shuffled indices of an epoch; shuffles only when the epoch changes."""
        if self._shuffled[0] != epoch:
            order = list(range(self.size))
            random.Random(f"{self.seed}:{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return self._shuffled[1]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for ``load_state_dict``."""
        return {"size": self.size, "seed": self.seed, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state``; raises ``ValueError`` if it belongs to other data."""
        if state["size"] != self.size or state["seed"] != self.seed:
            raise ValueError(
                f"sampler state: {state['size']} examples with seed {state['seed']}, "
                f"wanted {self.size} with seed {self.seed}"
            )
        self.consumed = state["consumed"]
