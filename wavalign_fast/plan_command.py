"""``wavalign-fast plan``: the memory that a run needs on each rank, before it is started."""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.errors import shown

if TYPE_CHECKING:
    from wavalign_fast.config.schema import RunConfig
    from wavalign_fast.plan.estimate import Estimate
    from wavalign_fast.plan.planned_run import PlannedRun


def add_plan(commands: Any) -> None:
    """Adds the command to the parser."""
    plan = commands.add_parser(
        "plan",
        help="estimate the GPU memory of a run, and say what to change if it does not fit",
        description="Takes what `train` takes. Reads the model's config only: no GPU, no weights.",
    )
    plan.add_argument(
        "inputs",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help="at most one config file, and any settings, e.g. train.block_tokens=8192",
    )
    plan.add_argument("--recipe", help="name of the recipe, e.g. spoken-sums")
    plan.add_argument("--arm", help="plan this variant of the recipe")
    plan.add_argument(
        "--ranks",
        type=_count,
        default=1,
        help="GPUs that torchrun will start; default: %(default)s",
    )
    plan.add_argument(
        "--gpu-memory",
        type=_gibibytes,
        default=80.0,
        metavar="GIB",
        help="memory of a GPU; default: %(default)g",
    )
    plan.add_argument(
        "--prompt-tokens",
        type=_count,
        default=512,
        metavar="N",
        help="length of the longest prompt; default: %(default)s",
    )
    plan.add_argument("--json", action="store_true", help="print bytes as JSON")
    plan.set_defaults(command=plan_run, arms=None, all_arms=False, name=None, seed=None)


def plan_run(args: argparse.Namespace) -> int:
    """Runs the command; the status is 0 whether the run fits or not."""
    from wavalign_fast.train_command import quiet_libraries, resolve

    (config,) = resolve(args)
    quiet_libraries()
    from wavalign_fast.plan.advice import Plan, advice
    from wavalign_fast.plan.estimate import estimate
    from wavalign_fast.plan.from_config import planned_run
    from wavalign_fast.plan.page import as_json, table

    model = _model_config(config)
    gpu_bytes = args.gpu_memory * 2**30

    @functools.cache
    def estimated(run: "PlannedRun") -> "Estimate":
        return estimate(model, run, at_most=gpu_bytes)

    def of_plan(plan: Plan) -> "Estimate":
        return estimated(
            planned_run(plan.config, ranks=plan.ranks, prompt_tokens=args.prompt_tokens)
        )

    plan = Plan(config, args.ranks, tied=model.get_text_config().tie_word_embeddings)
    found = of_plan(plan)
    changes = [] if found.needed <= gpu_bytes else advice(plan, of_plan, gpu_bytes)
    if args.json:
        print(as_json(found, gpu_gib=args.gpu_memory, changes=changes))
    else:
        title = config.model.path or config.recipe
        print(table(found, title=title, gpu_gib=args.gpu_memory, changes=changes))
    return 0


def _model_config(config: "RunConfig") -> Any:
    """Returns the model's config; a recipe's own comes with the small weights that it ships."""
    from wavalign_fast.plan.from_config import model_config
    from wavalign_fast.train_command import task_maker

    if config.model.path is not None:
        return model_config(Path(config.model.path).expanduser())
    return task_maker(config)().load_model().config


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted a whole number >= 1")
    return value


def _gibibytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, wanted GiB, e.g. 80")
    return value
