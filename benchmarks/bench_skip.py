"""Modality-aware skipping: what `skip_tolerance` saves, at which error.

    python -m benchmarks.bench_skip [--quick] [--save]

Measures two distributions. One is the hidden states and head of the trained model that ships with
the package; its vocabulary has only two tiles, so there is little to skip. The other is synthetic,
under the paper's head, and its record states the probability mass on the other modality. Both are
in bf16: its rounding of a gradient exceeds the error that skipping adds, so every side passes the
check against float64. The tests of `skip_tolerance` check the bound on that error.
"""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import wavalign_fast as wf

from .bench_linear_logprob import Operands, Own, case_of
from .case import Case, run_cases
from .options import DTYPES, Options, parse
from .providers import Calls
from .shapes import SKIPPING, LogprobShape

NAME = "skip"
TOLERANCES = (1e-6, 1e-4)
APART = 10.0
"""Added to the logits of the row's own modality, subtracted from those of the other."""
TEXT_SHARE = 4 / 14
"""Four text tokens to ten of speech, as VITA-Audio interleaves them."""
MASS_ROWS = 64


class Synthetic(Operands):
    """Random rows of a demonstration; each favours the modality of its target."""

    def __init__(self, shape: LogprobShape, dtype: torch.dtype, device: str) -> None:
        super().__init__(shape, dtype, device)
        g = torch.Generator().manual_seed(1)
        begin, end = shape.speech
        is_text = torch.rand(shape.rows, generator=g) < TEXT_SHARE
        text = torch.randint(0, begin, (shape.rows,), generator=g)
        speech = torch.randint(begin, end, (shape.rows,), generator=g)
        self.targets = torch.where(is_text, text, speech).to(device)
        # One hidden dimension separates the modalities.
        self.hidden[:, 0] = torch.where(is_text, APART, -APART).to(self.hidden)
        self.weight[:begin, 0], self.weight[begin:, 0] = 1.0, -1.0


class Trained(Operands):
    """Hidden states of held-out demonstrations under the shipped model, and its head."""

    def __init__(self, shape: LogprobShape, dtype: torch.dtype, device: str) -> None:
        super().__init__(shape, dtype, device)
        hidden, targets, weight = _spoken_sums(shape.rows)
        self.hidden, self.targets = hidden.to(device, dtype), targets.to(device)
        self.weight = weight.to(device, dtype)


def _spoken_sums(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    from wavalign_fast.models import hidden_states, output_head
    from wavalign_fast.recipes.spoken_sums.data import built_in_split
    from wavalign_fast.recipes.spoken_sums.task import SpokenSums

    task = SpokenSums(demonstrations="gold")
    model = task.load_model()
    _, held_out = built_in_split()
    states, targets = [], []
    for shown in task.demonstrations(held_out, random.Random(0)):
        ids = torch.tensor([shown.prompt_ids + shown.answer_ids])
        with torch.no_grad():
            states.append(hidden_states(model, [ids])[len(shown.prompt_ids) - 1 : -1])
        targets.append(torch.tensor(shown.answer_ids))
    return torch.cat(states)[:rows], torch.cat(targets)[:rows], output_head(model).weight.detach()


DISTRIBUTIONS: dict[str, tuple[type[Operands], str]] = {
    "tiny": (Trained, "held-out demonstrations under the trained model of spoken-sums"),
    "quick": (Synthetic, "synthetic: one hidden dimension tells text from speech"),
    "vita-audio": (Synthetic, "synthetic: one hidden dimension tells text from speech"),
}


def off_modality_mass(operands: Operands, speech: tuple[int, int]) -> Tensor:
    """Probability mass on the other modality, of the first ``MASS_ROWS`` rows, in float64."""
    rows, targets = operands.hidden[:MASS_ROWS].double(), operands.targets[:MASS_ROWS]
    logp = torch.log_softmax(rows @ operands.weight.double().T, dim=-1)
    spoken = logp[:, speech[0] : speech[1]].exp().sum(-1)
    is_speech = (targets >= speech[0]) & (targets < speech[1])
    return torch.where(is_speech, 1 - spoken, spoken)


def skipping(tolerance: float) -> Own:
    options = wf.LossOptions(skip_tolerance=tolerance)

    def logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return wf.linear_logprob(hidden, weight, targets, options=options).logp

    return f"skip-{tolerance:g}", f"skip_tolerance={tolerance:g}", Calls(logp=logp)


def make_case(shape: LogprobShape, dtype: str, options: Options) -> Case:
    kind, distribution = DISTRIBUTIONS[shape.name]
    operands = kind(shape, DTYPES[dtype], options.device)
    mass = off_modality_mass(operands, shape.speech)
    facts: dict[str, Any] = {
        "distribution": distribution,
        "off_modality_mass": {"median": mass.median().item(), "max": mass.max().item()},
    }
    own = [skipping(tolerance) for tolerance in TOLERANCES]
    case = case_of(operands, shape, dtype, "logp", options, own)
    return replace(case, facts=facts)


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    for name in options.shapes or (("quick",) if options.quick else ("tiny", "vita-audio")):
        for dtype in options.dtypes:
            yield partial(make_case, SKIPPING[name], dtype, options)


def run(options: Options) -> int:
    """Measures on the CPU, which alone can skip; returns 1 if a result is wrong."""
    if options.device != "cpu":
        return 0
    options = replace(options, dtypes=("bf16",), providers=("ours-cpu",))
    return run_cases(NAME, cases(options), options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse(__doc__, shapes=SKIPPING, argv=argv))


if __name__ == "__main__":
    sys.exit(main())
