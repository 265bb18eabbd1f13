"""Worker processes of the judge. A worker that dies loses only the answers it was hearing."""

import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from selectors import EVENT_READ, DefaultSelector
from typing import Any

import numpy as np

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.recipes.spoken_sums.recogniser import Recogniser, hear_each
from wavalign_fast.rewards import worker_loop, worker_process
from wavalign_fast.rewards.worker_process import NOT_YET, WorkerDiedError, WorkerProcess

CHUNK = 8
"""Number of answers that a worker gets at once."""
SILENCE_LIMIT_S = 300.0
"""After this silence of all workers they count as dead; a chunk takes 1 s, a start 10 s."""


def spawn_main() -> None:
    """Runs a worker: replies to each line of answers with what it hears in them."""
    worker_loop.serve(_hear_with_own_recogniser)


def _hear_with_own_recogniser() -> Callable[[Any], Any]:
    import torch

    torch.set_num_threads(1)
    recogniser = Recogniser(np.load(sys.argv[1]))

    def hear(answers: Any) -> Any:
        heard, error = hear_each(recogniser, answers)
        return {"heard": heard, "error": error}

    return hear


def command(centroids: str) -> list[str]:
    """Returns the command that starts a worker with a file of centroids."""
    return worker_process.command(__name__, "spawn_main()", centroids)


class Worker(WorkerProcess):
    """One worker process, killed at the end of the context."""

    def __init__(self, centroids: str) -> None:
        super().__init__(command(centroids), env={"OMP_NUM_THREADS": "1"})
        self.first: int | None = None
        """Index of the first answer of its chunk; ``None`` while it starts and when it is idle."""

    def ask(self, first: int, answers: Sequence[tuple[int, ...]]) -> None:
        """Sends answers, the first of which has index ``first``."""
        self.first = first
        # It has nothing unread, and a chunk is shorter than the buffer of a pipe: no wait here.
        self.send(answers, timeout_s=SILENCE_LIMIT_S)


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
        with DefaultSelector() as waiting:
            for worker in team:
                waiting.register(worker, EVENT_READ, worker)
            # Do not wait for a worker that is still starting when everything has been heard.
            while waiting.get_map() and (self._todo or any(w.first is not None for w in team)):
                ready = waiting.select(SILENCE_LIMIT_S)
                if not ready:
                    silent = sum(w.first is not None for w in team)
                    what = f"the replies of {silent}" if silent else "the start"
                    self.failures.append(
                        f"waited {SILENCE_LIMIT_S:.0f} s for {what} of {len(team)} workers"
                    )
                    return
                for key, _ in ready:
                    if not self._is_busy(key.data):
                        waiting.unregister(key.data)

    def _is_busy(self, worker: Worker) -> bool:
        """Reads what the worker has written; returns whether there is more to wait for."""
        try:
            reply = worker.read()
        except WorkerDiedError as death:
            worker.first = None
            self.failures.append(str(death))
            return False
        return reply is NOT_YET or self.take(worker, reply)


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
