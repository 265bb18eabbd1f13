"""A head in slices over ranks has the values and gradients of the whole head."""

import contextlib
import random
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import wavalign_fast as wf
from tests.gpu.chunk_loop.checks import on
from tests.losses import formula
from tests.ranks import run_ranks
from wavalign_fast.ops import backend_status
from wavalign_fast.ops.chunked import api
from wavalign_fast.ops.sharded import exchange

REFERENCE = wf.LossOptions(backend="reference")
WORLDS = (1, 2, 4)
EXACT = [("reference", torch.float64, 1e-12), ("cpu", torch.float32, 1e-5)]
"""Backend, dtype and the largest relative error."""
HAS_CPU = backend_status()["cpu"] is None


def shard_of(weight: torch.Tensor, height: int) -> wf.HeadShard:
    """This rank's rows of a whole head, dealt as FSDP2 deals them."""
    each = -(-len(weight) // dist.get_world_size())
    start = min(dist.get_rank() * each, len(weight))
    mine = weight[start : start + each].detach().clone().requires_grad_()
    return wf.HeadShard(
        weight=mine, start=start, vocab_size=len(weight), group=dist.group.WORLD, height=height
    )


def rows_of(shard: wf.HeadShard, whole: torch.Tensor) -> torch.Tensor:
    return whole[shard.start : shard.start + len(shard.weight)]


def backend_in_use(name: str) -> contextlib.AbstractContextManager:
    """``definition``: the chunk loop of the GPU backends with its row kernels in plain torch."""
    return on("definition") if name == "definition" else contextlib.nullcontext()


def options_of(backend: str) -> wf.LossOptions:
    return wf.LossOptions(backend="auto" if backend == "definition" else backend)


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """What the first custom op imports, which takes seconds, before the ranks are forked."""
    with on("definition"):
        wf.linear_logprob(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([1]))


# Log-probs


def positions_of(rank: int, world: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [T, 6] and targets [T]; the second rank has no live row."""
    g = torch.Generator().manual_seed(rank)
    count = 5 + 3 * rank
    targets = torch.randint(0, vocab, (count,), generator=g)
    targets[::4] = -7
    if rank == 1:
        targets[:] = -7
    return torch.randn(count, 6, generator=g, dtype=torch.float64), targets


def head_of(vocab: int, banned: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A head and its bias, which bans no id, a few, or all ids of the first slice."""
    g = torch.Generator().manual_seed(9)
    weight = torch.randn(vocab, 6, generator=g, dtype=torch.float64)
    bias = torch.randn(vocab, generator=g, dtype=torch.float64)
    if banned != "none":
        each = -(-vocab // dist.get_world_size())
        bias[: each if banned == "slice" else 2] = -torch.inf
    return weight, bias


def logprob_errors(backend: str, dtype: torch.dtype, vocab: int, banned: str) -> dict[str, float]:
    """Errors of this rank's values and gradients, against one process in float64."""
    world, rank = dist.get_world_size(), dist.get_rank()
    weight, bias = head_of(vocab, banned)
    weight = weight.to(dtype).double()  # the operands that both sides have
    everyone = [positions_of(r, world, vocab) for r in range(world)]
    everyone = [(h.to(dtype).double(), t) for h, t in everyone]
    if banned != "none":  # a banned target has no finite loss
        allowed = torch.nonzero(bias.isfinite()).flatten()
        everyone = [(h, torch.where(t == -7, -7, allowed[t % len(allowed)])) for h, t in everyone]
    settings = {"temperature": 1.3, "ignore_index": -7, "with_entropy": True}

    def loss_of(out: wf.LogProb, r: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(50 + r)
        factors = torch.randn(3, len(out.logp), generator=g).to(out.logp.dtype)
        return (factors * torch.stack(out[:3])).sum()

    leaves = [t.clone().requires_grad_() for t in (weight, bias)]
    states = [h.clone().requires_grad_() for h, _ in everyone]
    outs = [
        wf.linear_logprob(h, leaves[0], t, bias=leaves[1], options=REFERENCE, **settings)
        for h, (_, t) in zip(states, everyone, strict=True)
    ]
    sum(loss_of(out, r) for r, out in enumerate(outs)).backward()

    height = max(int((t != -7).sum()) for _, t in everyone)
    shard = shard_of(weight.to(dtype), height)
    own_bias = rows_of(shard, bias.to(dtype)).clone().requires_grad_()
    hidden = everyone[rank][0].to(dtype).requires_grad_()
    with backend_in_use(backend):
        out = wf.linear_logprob(
            hidden, shard, everyone[rank][1], bias=own_bias, options=options_of(backend), **settings
        )
        loss_of(out, rank).backward()
    wanted = outs[rank]
    pairs = {name: (getattr(out, name), getattr(wanted, name)) for name in wanted._fields[:3]}
    pairs["dH"] = hidden.grad, states[rank].grad
    pairs["dW"] = shard.weight.grad, rows_of(shard, leaves[0].grad)
    pairs["db"] = own_bias.grad, rows_of(shard, leaves[1].grad)
    return {name: error(*pair) for name, pair in pairs.items()}


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in units of the largest value but at least of 1."""
    assert got.shape == wanted.shape
    if got.numel() == 0:
        return 0.0
    got, wanted = got.detach().double(), wanted.detach()
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


def errors_of(cases: list[tuple], function) -> list[dict[str, float]]:
    """A rank's errors in each case; one launch of the ranks serves them all."""
    return [function(*case) for case in cases]


@pytest.mark.parametrize("world", WORLDS)
def test_log_probs_and_gradients_are_those_of_the_whole_head(world: int) -> None:
    """With ragged slices (V 37), an empty one (V 3 over 4 ranks), an idle rank, banned ids."""
    cases, bounds = [], []
    for backend, dtype, most in [*EXACT, ("definition", torch.float64, 1e-12)]:
        if backend != "cpu" or HAS_CPU:
            for vocab, banned in ((37, "none"), (37, "few"), (37, "slice"), (3, "none")):
                if banned != "slice" or world > 1:
                    cases.append((backend, dtype, vocab, banned))
                    bounds.append(most)
    for rank in run_ranks(world, errors_of, cases, logprob_errors):
        for case, bound, found in zip(cases, bounds, rank, strict=True):
            assert max(found.values()) <= bound, (case, found)


# The hybrid loss


SETTINGS = [
    {"policy_scope": "all", "clip": (0.2, 0.3), "text_kl": 0.1, "speech_kl": 0.3},
    {"policy_scope": "text", "kl_scope": "completion", "text_kl": 0.1, "normalisation": "token"},
    {"policy_scope": "all", "clip": 0.2, "importance_sampling_level": "sequence"},
]


def dealt(batch: wf.HybridBatch, share: str) -> wf.HybridBatch:
    """The rows of this rank, at the places of the whole batch; all others carry no loss."""
    world, rank = dist.get_world_size(), dist.get_rank()
    row = torch.where(batch.policy_row >= 0, batch.policy_row, batch.anchor_row)
    mine = {
        "dealt": row % world == rank,
        "rank 0 has all": torch.full_like(row, rank == 0, dtype=torch.bool),
        "kinds apart": (batch.policy_row >= 0) == (rank == 0) if world > 1 else row >= 0,
        "nobody has any": torch.zeros_like(row, dtype=torch.bool),
    }[share]
    if share == "kinds apart" and rank > 1:
        mine = torch.zeros_like(mine)
    tables = {
        name: torch.where(mine, getattr(batch, name), -1) for name in ("policy_row", "anchor_row")
    }
    return wf.HybridBatch(**{**batch.__dict__, **tables})


def hybrid_errors(
    backend: str, dtype: torch.dtype, share: str, number: int, budget: int | None
) -> dict[str, float]:
    """Errors of the ranks' summed loss, their log-probs and gradients."""
    batch, hidden, weight = formula.random_batch(
        random.Random(number), 3, 2, 2, reference=True, old=True
    )
    bias = torch.linspace(-1, 1, len(weight), dtype=torch.float64)
    hidden, weight = hidden.to(dtype).double(), weight.to(dtype).double()

    def objective(options: wf.LossOptions) -> wf.HybridObjective:
        return wf.HybridObjective(formula.LAYOUT, gate=0.4, options=options, **SETTINGS[number])

    exact = objective(REFERENCE)
    whole = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    wanted = exact(*whole[:2], batch, whole[2], normalisers=exact.normalisers(batch))
    mine = dealt(batch, share)
    live = exact.token_weights(mine).live
    height = live.sum()
    dist.all_reduce(height, op=dist.ReduceOp.MAX)
    shard = shard_of(weight.to(dtype), int(height))
    own_bias = rows_of(shard, bias.to(dtype)).clone().requires_grad_()
    states = hidden.to(dtype).requires_grad_()
    small = mock.patch.object(api, "DEFAULT_MEMORY_BUDGET", budget)
    one_block = mock.patch("wavalign_fast.ops.sharded.steps.PRODUCT_ROWS", 8)
    with backend_in_use(backend), small if budget else contextlib.nullcontext():
        with one_block if budget else contextlib.nullcontext():
            out = objective(options_of(backend))(
                states, shard, mine, own_bias, normalisers=exact.normalisers(batch)
            )
        out.loss.backward()
    loss, grad = out.loss.detach().double(), states.grad.double()
    dist.all_reduce(loss)
    dist.all_reduce(grad)
    if share == "nobody has any":
        assert not any(t.any() for t in (loss, grad, shard.weight.grad, own_bias.grad))
        return {}
    wanted.loss.backward()
    pairs = {
        "loss": (loss, wanted.loss),
        "logp": (out.logp, torch.where(live, wanted.logp, 0.0)),
        "dH": (grad, whole[0].grad),
        "dW": (shard.weight.grad, rows_of(shard, whole[1].grad)),
        "db": (own_bias.grad, rows_of(shard, whole[2].grad)),
    }
    return {name: error(*pair) for name, pair in pairs.items()}


@pytest.mark.parametrize("world", WORLDS)
def test_the_hybrid_loss_is_that_of_the_whole_head(world: int) -> None:
    """Dealt in every way, in one chunk and in many, with clipping, a KL and ratios of sequences."""
    cases, bounds = [], []
    for backend, dtype, most in [*EXACT, ("definition", torch.float64, 1e-12)]:
        for number in range(len(SETTINGS)) if backend != "cpu" or HAS_CPU else ():
            shares = ("dealt", "rank 0 has all", "kinds apart", "nobody has any")
            for share in shares[: None if number == 0 else 1]:
                cases.append((backend, dtype, share, number, None))
                bounds.append(most)
    cases += [("definition", torch.float64, "dealt", number, 1) for number in range(2)]
    bounds += [1e-12] * 2
    for rank in run_ranks(world, errors_of, cases, hybrid_errors):
        for case, bound, found in zip(cases, bounds, rank, strict=True):
            assert max(found.values(), default=0.0) <= bound, (case, found)


def exchanges(backend: str, budget: int | None) -> int:
    """How many times this rank gathers statistics in a fused step."""
    counted = mock.Mock(side_effect=exchange.whole_stats)
    with mock.patch("wavalign_fast.ops.sharded.steps.whole_stats", counted):
        hybrid_errors(backend, torch.float64, "rank 0 has all", 0, budget)
    return counted.call_count


def test_all_ranks_run_the_chunks_of_the_tallest() -> None:
    assert run_ranks(2, exchanges, "definition", None) == [1, 1]
    first, second = run_ranks(2, exchanges, "definition", 1)
    assert first == second > 4


# Rounding


def rounding(backend: str, dtype: torch.dtype) -> dict[str, float]:
    """Errors for this rank's rows: of log-probs, and of dH in units of one process's error."""
    world, rank, rows, size, vocab = dist.get_world_size(), dist.get_rank(), 64, 96, 1031
    g = torch.Generator().manual_seed(1)
    weight = (torch.randn(vocab, size, generator=g) / size**0.5 * 6).to(dtype)  # logits' std is 6
    hidden = torch.randn(world * rows, size, generator=g).to(dtype)
    targets = (hidden.float() @ weight.float().T).argmax(-1)  # as sampled: likely ids
    factors = torch.randn(world * rows, generator=g)
    mine = slice(rank * rows, (rank + 1) * rows)

    def results(h: torch.Tensor, w, where: slice, options) -> tuple[torch.Tensor, ...]:
        h = h[where].clone().requires_grad_()
        batch = wf.HybridBatch(
            targets[where], torch.full((len(h),), -1), torch.arange(len(h)), torch.ones(1, 2)
        )
        layout = wf.ModalityLayout(vocab_size=vocab, speech=((900, vocab),))
        if backend == "cpu":
            logp = wf.linear_logprob(h, w, targets[where], options=options).logp
            (logp * factors[where].to(logp.dtype)).sum().backward()
            return logp.detach().double(), h.grad.double()
        by = wf.Normalisers(policy=1.0, anchor=1.0, kl=1.0)
        out = wf.HybridObjective(layout, gate=0.0, options=options)(h, w, batch, normalisers=by)
        out.loss.backward()
        return out.logp.double(), h.grad.double()

    everything = slice(0, len(hidden))
    leaf = weight.double().requires_grad_()
    logp, dh = (t[mine] for t in results(hidden.double(), leaf, everything, REFERENCE))
    with backend_in_use(backend):
        one = results(hidden, weight.clone().requires_grad_(), everything, options_of(backend))
        one_dh = one[1][mine]
        got, got_dh = results(hidden, shard_of(weight, rows), mine, options_of(backend))
    return {
        "logp": float((got - logp).abs().max()),
        "dH": float((got_dh - dh).norm() / (one_dh - dh).norm()),
    }


def test_slices_round_no_more_than_one_process() -> None:
    """bfloat16: log-probs to 1e-4, and dH to 1.2 times the error of a whole head's product."""
    cases = [("definition", torch.bfloat16)] + [("cpu", torch.bfloat16)] * HAS_CPU
    for world in (2, 4):
        for rank in run_ranks(world, errors_of, cases, rounding):
            for found in rank:
                assert found["logp"] <= 1e-4 and found["dH"] <= 1.2, found


def far_from_zero(backend: str) -> float:
    """The error of log-probs whose logits are all near 3000."""
    hidden, weight = torch.ones(4, 2), torch.randn(12, 2, generator=torch.manual_seed(0)) + 1500
    targets = torch.arange(4)
    wanted = wf.linear_logprob(hidden.double(), weight.double(), targets, options=REFERENCE).logp
    with backend_in_use(backend):
        found = wf.linear_logprob(hidden, shard_of(weight, 4), targets, options=options_of(backend))
    return float((found.logp.double() - wanted).abs().max())


def test_logits_far_from_zero_do_not_round_the_log_probs() -> None:
    """fp32 has steps of 2.4e-4 at 3000, and both parts of the sum are rounded to them once."""
    for backend in ["definition"] + ["cpu"] * HAS_CPU:
        assert max(run_ranks(2, far_from_zero, backend)) < 5e-4


# Refusals


def refusals() -> list[str]:
    """What each misuse says; nobody communicates, so no rank waits."""
    hidden, weight, targets = torch.randn(4, 6), torch.randn(10, 6), torch.tensor([1, 9, 3, 4])
    shard = shard_of(weight, 4)
    fields = {name: getattr(shard, name) for name in ("start", "vocab_size", "group", "height")}
    layout = wf.ModalityLayout(vocab_size=12, speech=((8, 12),))
    batch = wf.HybridBatch(targets, torch.full((4,), -1), torch.zeros(4).long(), torch.ones(1, 2))

    def low_height() -> None:
        wf.linear_logprob(hidden, shard_of(weight, 3), targets)

    calls = [
        low_height,
        lambda: wf.linear_logprob(hidden, shard, torch.tensor([1, 10, 3, 4])),
        lambda: wf.linear_logprob(hidden, shard, targets, bias=torch.zeros(10)),
        lambda: wf.HybridObjective(layout)(hidden, shard, batch),
        lambda: wf.HeadShard(weight=weight, **(fields | {"start": 1})),
        lambda: wf.HeadShard(weight=weight[:1], **(fields | {"group": None})),
        lambda: wf.HeadShard(weight=weight[:1], **(fields | {"height": 2.0})),
        lambda: wf.HeadShard.of(weight, height=4),
    ]
    return [message_of(call) for call in calls]


def message_of(call) -> str:
    with pytest.raises(ValueError) as found:
        call()
    return str(found.value)


def test_what_does_not_fit_is_refused() -> None:
    wanted = [
        "HeadShard.height: got 3, want the largest number of live rows of any rank; this rank has",
        "targets[1] = 10 is outside [0, 10)",
        "bias: got shape (10,), want [5]",
        "weight has 10 rows, want 12",
        "HeadShard: got rows [1, 11), want them below vocab_size = 10",
        "HeadShard.group: got NoneType, want a ProcessGroup",
        "HeadShard.height: got 2.0, want a whole number >= 0",
        "head: got a Tensor, want a DTensor",
    ]
    for found in run_ranks(2, refusals):
        for message, start in zip(found, wanted, strict=True):
            assert message.startswith(start), message


def second_passes() -> list[str]:
    """What a second backward pass and a second derivative say."""
    found = []
    for again in ({}, {"create_graph": True}):
        hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        shard = shard_of(torch.randn(10, 6, dtype=torch.float64), 4)
        out = wf.linear_logprob(hidden, shard, torch.arange(4), options=REFERENCE)
        with pytest.raises(RuntimeError) as raised:
            out.logp.sum().backward(retain_graph=True, **again)
            out.logp.sum().backward()
        found.append(str(raised.value))
    return found


def test_a_second_pass_is_refused() -> None:
    for twice, derivative in run_ranks(2, second_passes):
        assert twice.startswith("a second backward pass through one sharded head")
        assert derivative.startswith("the fused losses have no second derivative")
