"""The table of instructions. Each module of instructions enters its own."""

from __future__ import annotations

from collections.abc import Callable

from .errors import Unsupported
from .program import Instruction
from .step import Step
from .values import DTYPES

Handler = Callable[[Step], bool | None]
"""Executes an instruction. Returns True if it has set where its lanes go on."""

_HANDLERS: dict[str, tuple[Handler, frozenset[str] | None]] = {}


def instruction(*names: str, modifiers: str | None = "") -> Callable[[Handler], Handler]:
    """Enters a handler for opcodes whose first part is one of ``names``.

    Args:
        names: first parts of opcodes.
        modifiers: the other parts that the handler honours, besides types; ``None``: it checks
            them itself. An opcode with any other part is unsupported.
    """

    def enter(handler: Handler) -> Handler:
        known = None if modifiers is None else frozenset(modifiers.split())
        for name in names:
            assert name not in _HANDLERS, name
            _HANDLERS[name] = (handler, known)
        return handler

    return enter


def handler_of(instruction: Instruction) -> Handler:
    """
    Raises:
        Unsupported: naming the PTX line, if there is none.
    """
    if instruction.parts[0] not in _HANDLERS:
        raise Unsupported(f"no such instruction is known to the emulator\n  {instruction}")
    handler, known = _HANDLERS[instruction.parts[0]]
    if known is not None:
        strange = instruction.modifiers - known - DTYPES.keys()
        if strange:
            words = ", ".join(f".{name}" for name in sorted(strange))
            raise Unsupported(f"{words} is not known to the emulator here\n  {instruction}")
    return handler
