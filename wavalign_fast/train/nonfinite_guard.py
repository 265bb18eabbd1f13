"""Stops a run whose gradients stay non-finite."""

from wavalign_fast.errors import UserError


class NonFiniteGuard:
    """Counts the steps skipped for a non-finite gradient and stops after ``limit`` in a row."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0

    def record(
        self, *, finite: bool, step: int, loss: float, grad_norm: float, rows: str = ""
    ) -> None:
        """Records one step; raises ``UserError`` after ``limit`` non-finite steps in a row.

        Args:
            rows: which rows of a non-finite step are broken.
        """
        if finite:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}: not finite {self.in_a_row} "
                f"steps in a row (train.max_nonfinite_steps); in {rows}; the weights are those "
                "before them; try a smaller optimizer.lr"
            )

    def state_dict(self) -> dict[str, int]:
        """Returns the counters."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the counters."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
