"""Runs in the worker: imports the user's reward function and calls it.

Nothing is imported here that the function does not need, so that the worker starts at once.
"""

import asyncio
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from wavalign_fast.errors import described, did_you_mean, shown
from wavalign_fast.rewards.worker_loop import serve


class RewardServer:
    """Answers the messages of ``RewardFunction``; a failure is a reply ``{"error": …}``."""

    def __init__(self) -> None:
        self._call: Callable[[list[dict[str, Any]]], Any] | None = None
        self._file = ""  # of the function

    def __call__(self, message: dict[str, Any]) -> dict[str, Any]:
        """Loads a function, or calls it on the answers of a step."""
        try:
            if "load" in message:
                return self._load(message["load"], message["arguments"])
            return self._score(message["answers"])
        except BaseException as error:  # also what sys.exit in the user's file raises
            return {"error": f"{described(error)}{_place(error, self._file)}"}

    def _load(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        source, _, attribute = name.rpartition(":")
        if source.endswith(".py"):  # known before the import, which may fail
            self._file = str(Path(source).resolve())
        module = import_source(source)
        self._file = module.__file__ or ""
        function = getattr(module, attribute, None)
        if function is None:
            callables = [key for key, value in vars(module).items() if callable(value)]
            return {"error": f"it has no {attribute}{did_you_mean(attribute, callables)}"}
        if not callable(function):
            return {"error": f"{attribute} is {shown(function)}, wanted a function"}
        try:
            inspect.signature(function).bind([], **arguments)
        except TypeError as error:
            given = "".join(f", {key}=…" for key in arguments)
            return {"error": f"{attribute}(answers{given}) cannot be called: {error}"}
        except ValueError:  # a function in C may have no signature
            pass
        self._call = lambda answers: function(answers, **arguments)
        return {}

    def _score(self, answers: list[dict[str, Any]]) -> dict[str, Any]:
        assert self._call is not None
        given = self._call(answers)
        if inspect.isawaitable(given):
            given = asyncio.run(_result(given))
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            kind = type(given).__name__
            return {"error": f"{shown(given)} ({kind}) returned, wanted a list of numbers"}
        rewards = [_plain(reward) for reward in given]
        for index, reward in enumerate(rewards):
            if reward is not None and not isinstance(reward, Real):
                kind = type(reward).__name__
                seen = f"{shown(reward)} ({kind}) returned for answer {index}"
                return {"error": f"{seen}, wanted a number, or None for a missing reward"}
        if len(rewards) != len(answers):
            counts = f"{len(rewards)} rewards returned for {len(answers)} answers"
            return {"error": f"{counts}, wanted one each"}
        return {"rewards": [None if reward is None else float(reward) for reward in rewards]}


async def _result(awaitable: Any) -> Any:
    return await awaitable


def _plain(value: Any) -> Any:
    """Turns a scalar of numpy or torch into a number of Python."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def import_source(source: str) -> ModuleType:
    """Imports ``FILE.py`` or ``PACKAGE.MODULE``; raises what the code in it raises."""
    if source.endswith(".py"):
        return _import_file(Path(source).resolve())
    return _import_module(source)


def _import_file(path: Path) -> ModuleType:
    # The name keeps the file from hiding an installed module of the same name, and lets pickle and
    # dataclasses find it. Its folder comes last, so that a file there hides nothing either.
    name = f"wavalign_reward_{path.stem}"
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.append("")  # modules in the current folder, as `python -m` finds them
    return importlib.import_module(name)


def _place(error: BaseException, file: str) -> str:
    """Returns the last line of the user's ``file`` that led to ``error``, and where it was raised.

    For example `` (score.py, line 3, in score)``.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    places = dict.fromkeys(map(_described, [*own[-1:], frames[-1]])) if own else {}
    return f" ({'; raised in '.join(places)})" if places else ""


def _described(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def main() -> None:
    """Serves one ``RewardFunction``."""
    serve(RewardServer)
