"""Runs in another interpreter: serves the codec that the user's factory makes.

This package is not there. The command line names the files of it that are, and they, like this one,
run on Python 3.7 with any torch since 1.10.
"""

from __future__ import annotations

import sys

# The folder of this file comes first, and its names would hide the user's.
del sys.path[0]

import random  # noqa: E402
import runpy  # noqa: E402
import traceback  # noqa: E402
from typing import Any  # noqa: E402


class CodecServer:
    """Answers the messages of ``SubprocessCodec``; a failure is a reply ``{"error": …}``."""

    def __init__(self, code: dict[str, Any]) -> None:
        self.code = code
        self.wire: dict[str, Any] = {}
        self.codec: Any = None
        self.seed = 0
        self.failures: dict[Any, int] = {}

    def __call__(self, message: dict[str, Any]) -> dict[str, Any]:
        """Loads the codec, encodes or decodes."""
        try:
            if "factory" in message:
                return self._load(message)
            self._seed()
            if "encode" in message:
                wave = self.wire["from_text"](message["encode"])
                return {"codes": self._list(self.codec.encode(wave, message["sample_rate"]))}
            return {"waves": self._decoded(message["decode"])}
        except BaseException as error:  # also what sys.exit in the user's code raises
            self._print(error)
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}

    def _print(self, error: BaseException) -> None:
        """Prints the traceback of a failure once; the next ones from there are counted."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        key = (type(error), place and (place.tb_frame.f_code, place.tb_lineno))
        self.failures[key] = self.failures.get(key, 0) + 1
        if self.failures[key] == 1:
            traceback.print_exc()
        else:
            name, count = type(error).__name__, self.failures[key]
            print(f"{name}: {error} (failure {count} there, traceback above)", file=sys.stderr)

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        self.wire = runpy.run_path(sys.argv[3])
        self.seed = message["seed"]
        self._seed()
        make = self.code["find"](message["factory"], message["paths"])
        self.codec = make(**message["arguments"])
        return self.code["facts"](self.codec, message["facts"])

    def _decoded(self, codes: Any) -> Any:
        import torch

        waves = self.codec.decode([torch.tensor(row) for row in codes])
        return [self.wire["to_text"](wave) for wave in waves]

    def _seed(self) -> None:
        import torch

        random.seed(self.seed)
        torch.manual_seed(self.seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(self.seed)

    def _list(self, codes: Any) -> Any:
        return codes.tolist() if hasattr(codes, "tolist") else list(codes)


if __name__ == "__main__":
    loop, code = (runpy.run_path(path) for path in sys.argv[1:3])
    loop["serve"](lambda: CodecServer(code))
