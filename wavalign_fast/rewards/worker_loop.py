"""What a worker process runs: it answers each line of JSON with a line of JSON.

Imports the standard library alone and runs on Python 3.7, because other interpreters than this
package's read this file too.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any, Callable  # noqa: UP035

PARENT_CHECK_S = 1.0


def serve(start: Callable[[], Callable[[Any], Any]]) -> None:
    """Runs in a worker: reports that it is ready, then replies to each line with a line.

    Args:
        start: makes the function that turns a message into its reply.
    """
    # What libraries print must not mix with the replies, nor may they read the messages.
    messages = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    answer = start()
    print(json.dumps("ready"), file=replies, flush=True)
    for line in messages:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


def _end_with_parent(parent: int) -> None:
    # A worker that waits for a message sees its parent end; one that is at work or hangs does not.
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
