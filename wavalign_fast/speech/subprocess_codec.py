"""A codec in another interpreter: the way to use code that pins old libraries."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import LifoQueue
from typing import Any

from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.rewards import worker_loop
from wavalign_fast.rewards.worker_client import WorkerClient
from wavalign_fast.speech import foreign_code, wire
from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.speech.codec import CodecError
from wavalign_fast.speech.foreign import CodecFacts, ForeignCodec

WORKER = Path(__file__).with_name("codec_worker.py")


class SubprocessCodec(ForeignCodec):
    """Calls the factory of ``ImportCodec`` in processes of another Python.

    They start at the first call, have torch (1.10 or newer) and the user's code, and need nothing
    of this package. One that dies or is late is replaced at the next call.

    Args:
        python: path of the interpreter.
        factory, paths, arguments, codebook_size, codes_per_second, sample_rate, channel, seed,
            batch_size, version: as in ``ImportCodec``; ``arguments`` as JSON can hold them.
        processes: how many calls run at once.
        timeout_s: seconds that a call may take.
        start_timeout_s: seconds that a process may take to load the codec.

    Raises:
        UserError: there is no such interpreter, or a number is not above 0.
    """

    def __init__(
        self,
        *,
        python: str,
        factory: str,
        paths: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
        codebook_size: int | None = None,
        codes_per_second: float | None = None,
        sample_rate: int | None = None,
        channel: ChannelRule = "mean",
        seed: int = 0,
        batch_size: int = 1,
        version: str = "",
        processes: int = 1,
        timeout_s: float = 300.0,
        start_timeout_s: float = 900.0,
    ) -> None:
        super().__init__(
            f"subprocess {factory}",
            identity=json.dumps(["subprocess", factory, arguments or {}, version], sort_keys=True),
            channel=channel,
            batch_size=batch_size,
        )
        if not Path(python).is_file():
            raise UserError(f"{self.name}: no such interpreter: {python}")
        limits = {
            "processes": processes,
            "timeout_s": timeout_s,
            "start_timeout_s": start_timeout_s,
        }
        for key, value in limits.items():
            if value <= 0:
                raise UserError(f"{self.name}: {key} is {value}, wanted above 0")
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        shared = (worker_loop, foreign_code, wire)  # in the order that the worker wants them
        files = [WORKER, *(inspect.getfile(part) for part in shared)]
        facts = {"codebook_size": codebook_size, "codes_per_second": codes_per_second}
        load = {
            "factory": factory,
            "paths": [str(Path(path).absolute()) for path in paths],
            "arguments": dict(arguments or {}),
            "facts": {**facts, "sample_rate": sample_rate},
            "seed": seed,
        }
        self._facts: CodecFacts | None = None
        self._free: LifoQueue[WorkerClient] = LifoQueue()
        self._clients = [
            WorkerClient(
                self.name,
                [python, *map(str, files)],
                load,
                error=CodecError,
                env={"PYTHONPATH": ""},  # this interpreter's packages are not for another one
            )
            for _ in range(processes)
        ]
        for client in reversed(self._clients):
            self._free.put(client)

    @property
    def facts(self) -> CodecFacts:
        """Of the loaded codec; starts a process if none has answered yet."""
        if self._facts is None:
            client = self._free.get()
            try:
                client.load(timeout_s=self._start_timeout_s)
                facts = CodecFacts(**client.loaded)
            finally:
                self._free.put(client)
            facts.check(self.name)
            self._facts = facts
        return self._facts

    def close(self) -> None:
        """Ends the processes. The next call starts them again."""
        for client in self._clients:
            client.close()

    def _encoded(self, wave: Tensor, sample_rate: int) -> Any:
        message = {"encode": wire.to_text(wave), "sample_rate": int(sample_rate)}
        return self._asked(message, f"for the codes of {len(wave)} samples")["codes"]

    def _decoded(self, codes: list[Tensor]) -> Any:
        message = {"decode": [row.tolist() for row in codes]}
        waves = self._asked(message, f"for {len(codes)} waves")["waves"]
        return [wire.from_text(wave) for wave in waves]

    def _asked(self, message: Mapping[str, Any], purpose: str) -> dict[str, Any]:
        client = self._free.get()
        try:
            client.load(timeout_s=self._start_timeout_s)
            return client.ask(message, purpose, timeout_s=self._timeout_s)
        finally:
            self._free.put(client)
