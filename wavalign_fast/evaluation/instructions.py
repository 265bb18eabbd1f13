"""Checks which instructions an answer follows, by the user's registry (IFEval, 2311.07911).

The registry maps a name, such as ``"length_constraints:number_words"``, to a class with
``build_description(**arguments)``, ``get_instruction_args()`` and ``check_following(answer)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wavalign_fast.errors import UserError, described, did_you_mean, shown


class Followed(NamedTuple):
    """Which of an answer's instructions hold: as it is, and of its best loosened form."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def loosened(answer: str) -> tuple[str, ...]:
    """Returns the eight forms of the loose test: without first or last line, without asterisks."""
    lines = answer.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    forms = ["\n".join(part).strip() if part is not lines else answer for part in cut]
    return (*forms, *(form.replace("*", "") for form in forms))


def followed(
    answer: str,
    instructions: Sequence[tuple[str, Mapping[str, Any]]],
    registry: Mapping[str, Any],
    *,
    prompt: str,
) -> Followed:
    """Returns for each instruction whether the answer follows it.

    Args:
        instructions: name and arguments of each; arguments without a value are left out.
        prompt: what some instructions need, such as the one to repeat it.

    Raises:
        UserError: the registry has no such instruction, or it fails.
    """
    strict, loose = [], []
    for name, given in instructions:
        if name not in registry:
            raise UserError(
                f"instruction {shown(name)}: the registry has none of this name"
                f"{did_you_mean(name, registry)}"
            )
        arguments = {key: value for key, value in given.items() if value}
        try:
            check = registry[name](name)
            check.build_description(**arguments)
            if "prompt" in (check.get_instruction_args() or {}):
                check.build_description(prompt=prompt)
            holds = [
                bool(form.strip()) and bool(check.check_following(form))
                for form in loosened(answer)
            ]
        except Exception as error:  # the registry is the user's
            raise UserError(
                f"instruction {name} of the registry failed: {described(error)}"
            ) from error
        strict.append(holds[0])
        loose.append(any(holds))
    return Followed(tuple(strict), tuple(loose))
