"""``wavalign-fast`` with the recipe ``toy``, for torchrun: as a command, with slow judges."""

import sys
import time

from tests.train import conftest as toy
from wavalign_fast import recipes
from wavalign_fast.cli import main
from wavalign_fast.config.layers import parse_overrides


class SlowTask(toy.ToyTask):
    """The toy, whose steps take long enough for a signal to arrive in one."""

    def rewards(self, completions):
        time.sleep(0.2)
        return super().rewards(completions)


def load_recipe(name: str):
    return {"recipe": "toy", "arm": "both", **parse_overrides(toy.FAST)}, toy.ARMS, SlowTask


if __name__ == "__main__":
    recipes.load_recipe = load_recipe
    sys.exit(main(["train", "--recipe", "toy", "--name", "run", *sys.argv[1:]]))
