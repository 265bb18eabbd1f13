"""Log-probabilities, entropies and gradients over sizes, offsets, banned ids and biases."""

from functools import partial

import torch

from ..providers import Calls
from .case import case, want
from .problem import (
    PLAIN,
    Problem,
    check,
    coefficients,
    compare,
    largest_logit,
    problem,
    results,
)

PAPER_VOCAB = 168072
SPEECH_START = 151686

VOCABS = {
    PAPER_VOCAB: ("a multiple of 8 and of no higher power of two", "verl#2656, verl#2899"),
    129920: ("a multiple of 128, not of 1024", "verl#2899"),
    151937: ("odd, one more than Qwen's 151936", "verl#2899"),
    168055: ("odd and composite", "verl#2899"),
    151939: ("a prime", "verl#2899"),
    300007: ("above 250 000", "Megatron-LM#2206"),
    97: ("less than one tile", "verl#2899"),
    2: ("two ids", ""),
    1: ("one id: every log-probability is 0", ""),
}


def _vocab(calls: Calls, *, v: int) -> None:
    check(calls, problem(24, 16, v))


for _v, (_what, _source) in VOCABS.items():
    case(
        f"vocab-{_v}",
        f"Values and gradients at V = {_v}: {_what}",
        items=(17,) if _v > 250_000 else (1, 2) if _v == PAPER_VOCAB else (2,),
        source=_source,
    )(partial(_vocab, v=_v))


@case("values-bf16", "bf16 operands: values and gradients no worse than plain torch's", items=(18,),
      source="Fast-LLM#525")  # fmt: skip
def bf16_operands(calls: Calls) -> None:
    check(calls, problem(200, 64, 3001, torch.bfloat16))


@case("hidden-sizes", "H = 1, 7 and 127: no multiple of a vector's or a tile's width", items=(2,))
def hidden_sizes_that_fill_no_tile(calls: Calls) -> None:
    for h in (1, 7, 127):
        check(calls, problem(20, h, 1000))


@case("offset-minus-300", "All logits near -300: nothing underflows", items=(3,),
      source="verl#7439")  # fmt: skip
def logits_near_minus_300(calls: Calls) -> None:
    check(calls, problem(48, 17, 3001, offset=-300.0))


@case("offset-plus-20000", "All logits near 20 000: the loss keeps the digits fp32 leaves it",
      items=(3, 13), source="pytorch#195829")  # fmt: skip
def logits_near_20000(calls: Calls) -> None:
    check(calls, problem(48, 17, 3001, offset=2e4))


@case("spread-10000", "Logits between -10 000 and 10 000 in a row", items=(3,), source="verl#7439")
def logits_between_minus_and_plus_10000(calls: Calls) -> None:
    p = problem(48, 17, 3001, std=2500.0)
    want(largest_logit(p) > 8000, "the problem lost its spread")
    check(calls, p)


@case("bias", "A bias counts once, in values and gradient, H over several blocks", items=(9,),
      source="cce#52, cce#53")  # fmt: skip
def bias_counts_once(calls: Calls) -> None:
    check(calls, problem(40, 600, 1000, bias=True))


@case("small-probabilities", "Ids of probability below 1e-4 keep their gradient", items=(9,),
      source="cce#14, cce#18")  # fmt: skip
def rare_ids_keep_their_gradient(calls: Calls) -> None:
    p = problem(64, 16, 40_000, std=1.0)
    ones = torch.ones(64)
    seen = results(calls, p, g=ones).grad_weight
    truth = results(PLAIN, p.double(), g=ones).grad_weight
    probabilities = torch.softmax(p.hidden.double() @ p.weight.double().T, -1)
    rare = probabilities.max(0).values < 1e-4
    rare[p.targets] = False
    want(int(rare.sum()) > 1000, "the problem lost its rare ids")
    error = ((seen[rare] - truth[rare]).norm() / truth[rare].norm()).item()
    want(error <= 1e-4, f"relative error of their rows {error:.1e}, want at most 1e-4")


def _banned(first: int, end: int, v: int) -> tuple[Problem, Problem]:
    """A head whose ids in [first, end) have logits of -inf, and the head without these ids.

    A hidden unit that is always 1 and a column of the head that holds -inf or 0 make the ban.
    """
    p = problem(16, 8, v)
    kept = torch.ones(v, dtype=torch.bool)
    kept[first:end] = False
    ids = kept.nonzero().squeeze(1)
    chosen = torch.randint(0, len(ids), p.targets.shape, generator=torch.Generator().manual_seed(1))
    smaller = Problem(p.hidden, p.weight[ids], chosen)
    column = torch.zeros(v, 1)
    column[first:end] = -torch.inf
    hidden = torch.cat([p.hidden, torch.ones(16, 1)], 1)
    return Problem(hidden, torch.cat([p.weight, column], 1), ids[chosen]), smaller


def _ban(calls: Calls, *, first: int, end: int, entropy: bool) -> None:
    """Checks all but the gradient of the infinite column, which is not defined."""
    p, smaller = _banned(first, end, PAPER_VOCAB)
    g = coefficients(16)
    g_entropy = coefficients(16, seed=8) if entropy else None
    seen = results(calls, p, g=g, g_entropy=g_entropy)
    truth = results(PLAIN, smaller.double(), g=g, g_entropy=g_entropy)
    plain = results(PLAIN, smaller, g=g, g_entropy=g_entropy)
    kept = torch.ones(PAPER_VOCAB, dtype=torch.bool)
    kept[first:end] = False
    floor = 8 * torch.finfo(torch.float32).eps * largest_logit(smaller)
    if entropy:
        compare("entropy", seen.entropy, truth.entropy, plain.entropy, value_floor=floor)
    else:
        compare("logp", seen.logp, truth.logp, plain.logp, value_floor=floor)
    compare(
        "grad_hidden", seen.grad_hidden[:, :8], truth.grad_hidden, plain.grad_hidden,
        value_floor=floor,
    )  # fmt: skip
    compare(
        "grad_weight", seen.grad_weight[kept][:, :8], truth.grad_weight, plain.grad_weight,
        value_floor=floor,
    )  # fmt: skip
    stray = int((seen.grad_weight[~kept] != 0).any(1).sum())
    lost = int(seen.grad_weight[~kept].isnan().any(1).sum())
    want(stray == 0, f"{stray} banned ids have a gradient, {lost} of them NaN, want 0")


for _name, _what, _first, _end in (
    ("speech", "The speech ids at -inf, as for a text-only turn", SPEECH_START, PAPER_VOCAB),
    ("text", "The text ids at -inf, whole leading tiles of them", 0, SPEECH_START),
):
    _banned_ids = partial(_ban, first=_first, end=_end)
    case(f"banned-{_name}", f"{_what}: log-probabilities and their gradients", items=(11,),
         source="flash-attention#1930")(partial(_banned_ids, entropy=False))  # fmt: skip
    case(f"banned-{_name}-entropy", f"{_what}: entropy and its gradient (0 · -inf is 0)",
         items=(11,))(partial(_banned_ids, entropy=True))  # fmt: skip


def _banned_by_bias() -> Problem:
    p = problem(40, 16, 9000, bias=True)
    p.bias[:5000] = -torch.inf
    return p._replace(targets=p.targets % 4000 + 5000)


@case("banned-by-bias", "A bias of -inf bans ids: values and all gradients", items=(11,))
def ids_banned_by_bias(calls: Calls) -> None:
    check(calls, _banned_by_bias())


@case("banned-by-bias-entropy", "A bias of -inf bans ids: entropy and its gradient", items=(11,))
def entropy_with_ids_banned_by_bias(calls: Calls) -> None:
    check(calls, _banned_by_bias(), g_entropy=coefficients(40, seed=8))


@case("entropy", "Entropy and the gradient through it", items=(12, 22),
      source="trl#6625, Liger#551")  # fmt: skip
def entropy_and_its_gradient(calls: Calls) -> None:
    p = problem(60, 32, 3001, std=2.0)
    check(calls, p, g=torch.zeros(60), g_entropy=coefficients(60))
    seen = check(calls, p, g=coefficients(60), g_entropy=coefficients(60, seed=8))
    without = results(calls, p, g=coefficients(60))
    apart = (seen.grad_hidden - without.grad_hidden).abs().max().item()
    want(apart > 1e-4, "the entropy's gradient is missing")


@case("entropy-bf16", "Entropy of bf16 operands no worse than plain torch's", items=(12, 18))
def entropy_of_bf16_operands(calls: Calls) -> None:
    check(calls, problem(60, 32, 3001, torch.bfloat16, std=2.0), g_entropy=coefficients(60))
