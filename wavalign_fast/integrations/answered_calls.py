"""The calls of one model answered by a function, for as long as a context lasts."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

Answer = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Called with the arguments of the model's forward; may return ``NotImplemented``."""

_ANSWERS: WeakKeyDictionary[nn.Module, Answer] = WeakKeyDictionary()
"""A copy of a model is none of them."""
_CLASSES: dict[type, tuple[int, Any]] = {}
"""Of each class with a replaced forward: how many contexts need that, and the class's own one."""


@contextmanager
def calls_answered(model: Any, answer: Answer) -> Iterator[None]:
    """Lets ``answer`` return what ``model(...)`` returns, unless that is ``NotImplemented``.

    The forward is replaced in the class, where it sees to this model alone. One that is replaced in
    the model would be copied with it, and would hide or take away what others (accelerate's
    autocast) put there in the meantime. The innermost of several contexts answers.
    """
    cls, before = type(model), _ANSWERS.get(model)
    users, own = _CLASSES.get(cls, (0, vars(cls).get("forward")))
    if not users:
        cls.forward = _either(cls.forward)
    _CLASSES[cls] = users + 1, own
    _ANSWERS[model] = answer
    try:
        yield
    finally:
        del _ANSWERS[model]
        if before is not None:
            _ANSWERS[model] = before
        _leave(cls)


def _leave(cls: Any) -> None:
    users, own = _CLASSES.pop(cls)
    if users > 1:
        _CLASSES[cls] = users - 1, own
    elif own is None:  # FSDP2's subclass inherits the forward of the model's class
        del cls.forward
    else:
        cls.forward = own


def _either(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)  # `generate` and trainers read the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = _ANSWERS.get(self)
        found = NotImplemented if answer is None else answer(args, dict(kwargs))
        return original(self, *args, **kwargs) if found is NotImplemented else found

    return forward
