"""Why a judgement fails: what may pass, what makes one score missing, and what stops the run."""

from wavalign_fast.errors import UserError


class JudgeError(UserError):
    """The judge cannot be used, or too many of its scores are missing; the run must stop."""


class MissingScoreError(Exception):
    """One score is missing, and asking again would not bring it.

    Args:
        cause: one of the names that docs/judge.md lists; metrics count by it.
        detail: what was seen.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


class PassingError(MissingScoreError):
    """A failure that may pass: the request is sent again while there is time.

    Args:
        after_s: seconds that the server wants to be left alone; ``None`` if it says nothing.
    """

    def __init__(self, cause: str, detail: str, after_s: float | None = None) -> None:
        super().__init__(cause, detail)
        self.after_s = after_s
