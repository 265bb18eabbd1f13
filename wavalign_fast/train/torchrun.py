"""What ``torchrun`` says about this process, read from the environment without importing torch."""

import json
import os
import time

from wavalign_fast.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` sets for each rank."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


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


def launcher() -> list[str]:
    """Returns the words before the name of a command that start this process, or its ranks, again.

    Of several machines, which ``torchrun`` does not describe completely, they contain ``...``.
    """
    if not several_ranks():
        return ["wavalign-fast"]
    world, here = (os.environ.get(name) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    options = ["--nproc-per-node", world] if here == world else ["..."]
    return ["torchrun", *map(str, options), "-m", "wavalign_fast"]


def tell_torchrun(message: str) -> None:
    """Gives ``torchrun`` the error of this rank, which it shows at the end of its own report.

    Without it the last lines a user sees are a traceback of ``torchrun`` and a hint at a web page.
    """
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": message, "extraInfo": extra}}, file)
    except OSError:
        pass  # a full disk, perhaps; the message is on stderr as well
