"""Operands of an instruction, from text (PTX ISA, chapter 6)."""

import re
from collections.abc import Callable

from .errors import Unsupported
from .program import (
    Address,
    Immediate,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

FindRegister = Callable[[str], str | None]
"""The unique name of a register that the current scope sees; ``None`` if there is none."""

_NUMBER = re.compile(r"[-+]?(0[fFdD][0-9a-fA-F]+|0[xX][0-9a-fA-F]+U?|\d+U?)")


def split_list(text: str) -> list[str]:
    """Splits at the commas that are outside every bracket."""
    items, depth, item = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            items.append(item.strip())
            item = ""
        else:
            item += character
    return [*items, item.strip()] if item.strip() else items


def parse_operand(text: str, find: FindRegister) -> Operand:
    if text == "_":
        return Sink()
    if text.startswith("["):
        return _address(text[1:-1].strip(), find)
    if text.startswith("{"):
        return Vector(tuple(parse_operand(t, find) for t in split_list(text[1:-1])))
    if text.startswith("!"):
        register = parse_operand(text[1:].strip(), find)
        assert isinstance(register, Register), text
        return Negated(register)
    if "|" in text:
        first, second = (parse_operand(t.strip(), find) for t in text.split("|"))
        return Pair(
            first if isinstance(first, Register) else None,
            second if isinstance(second, Register) else None,
        )
    if name := find(text):
        return Register(name)
    if _NUMBER.fullmatch(text):
        return Immediate(text)
    if text == "WARP_SZ":
        return Immediate("32")
    if text in ("true", "false"):
        return Immediate("1" if text == "true" else "0")
    if text.startswith("%"):
        return Special(text)
    if re.fullmatch(r"[\w$@]+", text):
        return Symbol(text)
    raise Unsupported(f"the operand {text!r}")


def _address(text: str, find: FindRegister) -> Address:
    pieces = split_list(text)
    match = re.fullmatch(r"([%\w$@]+)\s*(?:([+-])\s*(-?\w+))?", pieces[0])
    if match is None or len(pieces) > 2:
        raise Unsupported(f"the address [{text}]")
    base = parse_operand(match.group(1), find)
    if not isinstance(base, Register | Symbol | Immediate):
        raise Unsupported(f"the address [{text}]")
    offset = int(match.group(3), 0) if match.group(3) else 0
    coordinates: tuple[Operand, ...] = ()
    if len(pieces) == 2:
        vector = parse_operand(pieces[1], find)
        assert isinstance(vector, Vector), text
        coordinates = vector.items
    return Address(base, -offset if match.group(2) == "-" else offset, coordinates)
