"""Worker processes of the judge. A worker that dies loses only the answers it was hearing.

``multiprocessing`` is not used: with it a parent waits forever for a child that dies during its
start, each child runs the user's script again, and it gets its parent's signals and terminal.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.recipes.spoken_sums.recogniser import Recogniser, hear_each

CHUNK = 8
"""Number of answers that a worker gets at once."""
SILENCE_LIMIT_S = 300.0
"""After this silence of all workers they count as dead; a chunk takes 1 s, a start 10 s."""


def spawn_main(centroids: str) -> None:
    """Runs a worker: reports that it is ready, then replies to each line of answers with a line."""
    # Output of libraries must not mix with the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    recogniser = Recogniser(np.load(centroids))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        heard, error = hear_each(recogniser, json.loads(line))
        print(json.dumps({"heard": heard, "error": error}), file=replies, flush=True)


def command(centroids: str) -> list[str]:
    """Returns the command that starts a worker with a file of centroids."""
    # With the import path of this process, wherever it came from.
    path = [entry for entry in sys.path if isinstance(entry, str)]
    code = f"import sys; sys.path = {path!r}; from {__name__} import spawn_main; "
    return [sys.executable, "-c", f"{code}spawn_main(sys.argv[1])", centroids]


class Worker:
    """One worker process, killed at the end of the context.

    It has a session of its own, so that no signal from a terminal or to its parent's process group
    reaches it. It ends when its parent is gone.
    """

    def __init__(self, centroids: str) -> None:
        self.first: int | None = None
        """Index of the first answer of its chunk; ``None`` while it starts and when it is idle."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command(centroids),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        except OSError:
            self._errors.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        with suppress(OSError):  # a dead worker has not read everything
            self._process.communicate()
        self._errors.close()

    def fileno(self) -> int:
        """Returns the descriptor on which replies arrive."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ask(self, first: int, answers: Sequence[tuple[int, ...]]) -> None:
        """Sends answers, the first of which has index ``first``."""
        self.first = first
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # ``reply`` reports a dead worker
            self._process.stdin.write(json.dumps(answers).encode() + b"\n")
            self._process.stdin.flush()

    def reply(self) -> Any:
        """Reads the next reply; ``None`` if the worker died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def ending(self) -> str:
        """Describes how the worker died."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code < 0:
            known = {number.value: number.name for number in signal.Signals}
            return f"killed by {known.get(-code, f'signal {-code}')}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {code}{': ' + said[-1] if said else ''}"


class _Hearing:
    """The answers still to be heard, and the results of the others."""

    def __init__(self, answers: Sequence[tuple[int, ...]]) -> None:
        self.answers = answers
        self.heard: list[str | None] = [None] * len(answers)
        self.failures: list[str] = []
        self.started = False
        self._todo = deque(range(0, len(answers), CHUNK))

    def take(self, worker: Worker, reply: Any) -> bool:
        """Stores a reply and sends the next chunk; returns whether the worker has one to do."""
        first, worker.first = worker.first, None
        if reply is None:
            self.failures.append(worker.ending())
            return False
        self.started = True
        if first is not None:
            self.heard[first : first + CHUNK] = reply["heard"]
            self.failures += [reply["error"]] if reply["error"] else []
        if self._todo:
            first = self._todo.popleft()
            worker.ask(first, self.answers[first : first + CHUNK])
        return worker.first is not None

    def run(self, team: Sequence[Worker]) -> None:
        """Keeps the workers busy until all answers are heard or no worker is left."""
        with selectors.DefaultSelector() as waiting:
            for worker in team:
                waiting.register(worker, selectors.EVENT_READ, worker)
            # Do not wait for a worker that is still starting when everything has been heard.
            while waiting.get_map() and (self._todo or any(w.first is not None for w in team)):
                ready = waiting.select(SILENCE_LIMIT_S)
                if not ready:
                    self.failures.append(f"no reply within {SILENCE_LIMIT_S:.0f} s")
                    return
                for key, _ in ready:
                    worker = key.data
                    if not self.take(worker, worker.reply()):
                        waiting.unregister(worker)


def hear_in_workers(
    answers: Sequence[tuple[int, ...]], centroids: np.ndarray, workers: int
) -> tuple[list[str | None], list[str]]:
    """Returns what is heard in each answer, ``None`` after a failure, and the failures.

    Raises:
        UserError: no worker could be started.
    """
    hearing = _Hearing(answers)
    team: list[Worker] = []
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".npy"))
            np.save(file, centroids)
            file.flush()
            for _ in range(min(workers, -(-len(answers) // CHUNK))):
                team.append(stack.enter_context(Worker(file.name)))
        except OSError as error:
            hearing.failures.append(one_line(error))
        hearing.run(team)
    if not hearing.started:
        raise UserError(
            f"no worker of the judge can be started: {hearing.failures[-1]}; with "
            "task.judge_workers=1 the answers are heard without workers"
        )
    return hearing.heard, hearing.failures
