"""A server that the trainer starts and ends."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from wavalign_fast.errors import UserError, shorten
from wavalign_fast.rollout import server_watch

logger = logging.getLogger(__name__)

END_S = 10.0
"""Seconds that a server has to end itself."""


class ServerProcess:
    """One server in a session of its own, which ends with this process, however that ends.

    Args:
        command: what starts it.
        env: environment variables beside those of this process.

    Raises:
        UserError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="wavalign-server-", suffix=".log")
        self.log = Path(name)
        watch = [sys.executable, server_watch.__file__, str(os.getpid())]
        with os.fdopen(descriptor, "w") as log:
            try:
                self._process = subprocess.Popen(
                    [*watch, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **env},
                    start_new_session=True,
                )
            except OSError as error:
                raise UserError(f"{command[0]} cannot be started: {error.strerror}") from error
        logger.info("the server %s writes to %s", command[0], self.log)

    def ending(self) -> str | None:
        """Returns how it ended and its last line, or ``None`` while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        how = f"by signal {-status}" if status < 0 else f"with exit status {status}"
        return f"ended {how}: {shorten(last.strip(), 200)} (all of it: {self.log})"

    def end(self) -> None:
        """Ends it and all that it has started. Its output stays where it ended itself."""
        if self._process.poll() is None:
            self.log.unlink(missing_ok=True)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        # Workers of the server may still be there.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
