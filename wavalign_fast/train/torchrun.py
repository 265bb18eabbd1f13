"""What ``torchrun`` says about this process, read from the environment without importing torch."""

import os

from wavalign_fast.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` sets for each rank."""


def several_ranks() -> bool:
    """Whether this process is one of several ranks.

    Raises:
        UserError: only some of ``torchrun``'s variables are set, or one is not a number.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return False
    if missing := [name for name in VARIABLES if name not in given]:
        raise UserError(
            f"{', '.join(given)} set without {', '.join(missing)}; start the ranks with torchrun"
        )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not os.environ[name].isdecimal():
            raise UserError(f"{name}: {os.environ[name]!r} given, wanted a whole number")
    return int(os.environ["WORLD_SIZE"]) > 1
