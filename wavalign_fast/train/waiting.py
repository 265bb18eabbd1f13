"""Says what a rank was waiting for when the wait ended with an error."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from wavalign_fast.errors import UserError, is_shared

# gloo: "Timed out waiting 3000ms for recv operation"; the store: "wait timeout after 3000ms"
TIMED_OUT = re.compile(r"timed out|time ?out", re.IGNORECASE)
# gloo: "Connection closed by peer", "Connection reset by peer"; "Broken pipe"
LOST = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe", re.IGNORECASE)


class WaitError(UserError):
    """The other ranks did not come, or one is gone; nothing that communicates can go on."""


class LostRankError(WaitError):
    """Another rank has ended. What ended it, not this error, is what the user must know."""


@contextmanager
def naming_the_wait(what: str, *, rank: int, timeout_s: float) -> Iterator[None]:
    """Turns torch's error about a wait that failed into one that says what was waited for.

    Args:
        what: completes "waited for …", e.g. ``the checkpoint of step 20 on all ranks``.
        timeout_s: the deadline of the process group, for the message.

    Raises:
        WaitError: a collective in this block took longer than the deadline, or another rank ended.
    """
    try:
        yield
    except WaitError:
        raise  # an inner block has said it more precisely
    except RuntimeError as error:
        if is_shared(error):
            raise  # of the work of a rank, such as a judge that cannot be reached
        text = str(error)
        waited = f"rank {rank} waited for {what}"
        if LOST.search(text):
            raise LostRankError(
                f"{waited}: a rank has ended; its own message, or torchrun's report, says why"
            ) from error
        if TIMED_OUT.search(text):
            reason = (
                f"a rank did not come within {timeout_s:g} s (parallel.timeout_s): "
                "it hangs, or its work takes longer"
            )
            raise WaitError(f"{waited}: {reason}") from error
        raise
