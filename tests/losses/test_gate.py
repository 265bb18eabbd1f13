"""The gate's state: bad steps, checkpoints, options and ranks."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import wavalign_fast as wf
from tests.defaults import assert_defaults_change_no_bit
from tests.losses.formula import LAYOUT, H, V
from wavalign_fast.losses import all_reduce
from wavalign_fast.losses import gate as gate_module
from wavalign_fast.ops import backends, cuda

NAN, INF = float("nan"), float("inf")
REWARDS = torch.tensor([[1.0, 2.0, 5.0], [1.0, 4.0, NAN]])


def moved() -> wf.HybridObjective:
    objective = wf.HybridObjective(LAYOUT, gate=wf.MixingGate(ema=0.5))
    objective.gate(REWARDS)
    return objective


@pytest.mark.parametrize("bad", [INF, -INF])
@pytest.mark.parametrize("at", [(0, 0), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_infinite_reward_is_refused_by_name_and_leaves_no_trace(bad, at, dtype) -> None:
    rewards = REWARDS.to(dtype, copy=True)
    rewards[at] = bad
    gate = moved().gate
    before = gate.value
    row = torch.zeros(3, dtype=torch.long)
    for use in (
        gate,
        wf.MixingGate(),
        wf.group_advantages,
        lambda rewards: wf.HybridBatch(row, row, row - 1, rewards),
    ):
        for given in (rewards, rewards.tolist()):
            with pytest.raises(
                ValueError, match=rf"rewards\[{at[0]}, {at[1]}\]: got {bad}, want a "
            ):
                use(given)
    assert torch.equal(gate.value, before)


def test_an_unchecked_infinite_reward_makes_only_its_own_step_nan(monkeypatch) -> None:
    """As on a GPU, where a check would be a host sync."""
    monkeypatch.setattr(gate_module, "refuse_infinite", lambda rewards: None)
    for bad in (INF, -INF):
        rewards = REWARDS.clone()
        rewards[0, 1] = bad
        fresh, going_on, never = wf.MixingGate(), moved().gate, moved().gate
        assert torch.isnan(fresh(rewards)) and fresh.value is None
        assert torch.isnan(going_on(rewards)) and torch.equal(going_on.value, never.value)
        assert torch.equal(fresh(REWARDS), wf.MixingGate()(REWARDS))
        assert torch.equal(going_on(REWARDS), never(REWARDS))


def test_a_step_on_meta_tensors_does_not_move_the_gate() -> None:
    objective = moved()
    before = objective.gate.value
    rows = batch_of(REWARDS)
    tables = {name: getattr(rows, name).to("meta") for name in ("targets", "policy_row")}
    batch = wf.HybridBatch(
        **tables, anchor_row=rows.anchor_row.to("meta"), rewards=REWARDS.to("meta")
    )
    hidden, weight = (torch.randn(n, H, device="meta", requires_grad=True) for n in (12, V))
    objective(hidden, weight, batch).loss.backward()
    assert hidden.grad.shape == (12, H) and weight.grad.shape == (V, H)
    assert torch.equal(objective.gate.value, before)


def test_reading_lambda_after_a_step_is_no_host_sync(monkeypatch) -> None:
    """A tensor without a truth value stands for one on a device."""
    for gate in (wf.MixingGate(initial=0.5), moved().gate):
        assert gate.value is not None
        monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("it waits"))
        assert gate.value is gate.value
        monkeypatch.undo()


def test_a_first_step_without_any_reward_does_not_move_it() -> None:
    gate = wf.MixingGate()
    assert gate(torch.full((2, 3), NAN)) == 0 and gate.value is None
    assert torch.equal(gate(REWARDS), wf.MixingGate()(REWARDS))


@pytest.mark.parametrize("setting", ["lambda_max", "ema", "slope", "threshold", "variance_scale",
                                     "initial"])  # fmt: skip
@pytest.mark.parametrize("bad", [NAN, INF, -INF, "0.5", True, [0.5], torch.tensor(NAN)], ids=str)
def test_a_setting_that_is_not_a_finite_number_is_refused(setting: str, bad) -> None:
    with pytest.raises(ValueError, match=f"{setting}: got .*, want "):
        wf.MixingGate(**{setting: bad})


def reached_by_dcp(old: wf.HybridObjective, new: wf.HybridObjective, tmp_path) -> None:
    dcp.save({"objective": old}, checkpoint_id=tmp_path)
    dcp.load({"objective": new}, checkpoint_id=tmp_path)


def reached_by_dcp_of_models(old: wf.HybridObjective, new: wf.HybridObjective, tmp_path) -> None:
    dcp.save(get_model_state_dict(old), checkpoint_id=tmp_path)
    state = get_model_state_dict(new)
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(new, state)


def reached_by_state_dict(old: wf.HybridObjective, new: wf.HybridObjective, tmp_path) -> None:
    torch.save(old.state_dict(), tmp_path / "state")
    new.load_state_dict(torch.load(tmp_path / "state"), strict=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("way", [reached_by_dcp, reached_by_dcp_of_models, reached_by_state_dict])
@pytest.mark.parametrize("start", ["fresh", "moved"])
@pytest.mark.parametrize("target", ["fresh", "moved"])
def test_a_checkpoint_gives_lambda_back(way, start, target, tmp_path) -> None:
    old = moved() if start == "moved" else wf.HybridObjective(LAYOUT)
    new = wf.HybridObjective(LAYOUT)
    if target == "moved":
        new.gate(torch.tensor([[1.0, 1.0, 3.0]]))
    way(old, new, tmp_path)
    assert set(new.state_dict()) == {"gate.value"}
    if start == "fresh":
        assert new.gate.value is None
    else:
        assert torch.equal(new.gate.value, old.gate.value)


def test_a_state_dict_without_the_key_resets_the_gate() -> None:
    objective = moved()
    objective.load_state_dict({})
    assert objective.gate.value is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_alike(copied) -> None:
    for objective in (moved(), wf.HybridObjective(LAYOUT)):
        other = copied(objective)
        assert torch.equal(other.gate(REWARDS), objective.gate(REWARDS))


def test_an_unknown_key_is_refused() -> None:
    objective = wf.HybridObjective(LAYOUT)
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "gate\.lambda"'):
        objective.load_state_dict({"gate.value": torch.tensor(0.5), "gate.lambda": torch.tensor(1)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "lambda"'):
        wf.MixingGate().load_state_dict({"lambda": torch.tensor(0.5)})
    state = {"value": torch.tensor(0.5), "lambda": torch.tensor(0.5)}
    gate = wf.MixingGate()
    gate.load_state_dict(state, strict=False)
    assert gate.value == 0.5


def test_a_later_step_does_not_change_a_state_dict() -> None:
    objective = moved()
    state, value = objective.state_dict(), objective.gate.value
    before = value.clone()
    objective.gate(torch.tensor([[1.0, 1.0, 3.0]]))
    assert torch.equal(state["gate.value"], before) and torch.equal(value, before)


@pytest.mark.parametrize("move", [
    lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(), lambda m: m.to(torch.float16),
    lambda m: m.to("meta").to_empty(device="cpu"), lambda m: m.to_empty(device="cpu"),
])  # fmt: skip
def test_lambda_keeps_its_value_and_type_wherever_the_module_goes(move) -> None:
    objective = moved()
    before = objective.gate.value
    objective = move(objective)
    assert objective.gate.value.dtype == torch.float32
    assert torch.equal(objective.gate.value, before)
    assert move(wf.HybridObjective(LAYOUT)).gate.value is None


@pytest.mark.parametrize(
    "state, message",
    [
        (torch.tensor(NAN), "gate.value: got λ = nan, want 0 <= value <= lambda_max = 0.8"),
        (torch.tensor(INF), "gate.value: got λ = inf"),
        (torch.tensor(0.9), r"gate.value: got λ = 0\.89"),
        (torch.tensor(-0.1), "gate.value: got λ = -0.1"),
        (torch.tensor([0.3]), r"gate.value: got \(1,\), want a 0-d tensor"),
        (0.3, "gate.value: got float, want a 0-d tensor"),
        (torch.tensor(0.3, device="meta"), "gate.value: got a tensor on meta, want one with a val"),
    ],
    ids=str,
)
def test_an_impossible_state_is_refused(state, message: str) -> None:
    objective = moved()
    before = objective.gate.value
    with pytest.raises(ValueError, match=message):
        objective.load_state_dict({"gate.value": state})
    with pytest.raises(ValueError, match=message.removeprefix("gate.")):
        objective.gate.value = state
    assert torch.equal(objective.gate.value, before)


def test_a_state_may_be_set() -> None:
    gate = wf.MixingGate()
    gate.value = torch.tensor(0.3)
    assert torch.equal(gate(REWARDS), wf.MixingGate(initial=0.3)(REWARDS))
    gate.value = None
    assert gate.value is None and torch.equal(gate(REWARDS), wf.MixingGate()(REWARDS))


def test_a_limit_that_is_lowered_holds_from_the_next_step() -> None:
    gate = wf.MixingGate(initial=0.8)
    gate.lambda_max = 0.25
    assert gate(torch.tensor([[1.0, 5.0]])) == 0.25


@pytest.mark.parametrize("backend, by_kernel", [("auto", True), ("cuda", True), ("triton", False),
                                                ("reference", False), ("cpu", False)])  # fmt: skip
@pytest.mark.parametrize("from_environment", [False, True])
def test_the_backend_decides_who_computes_the_statistics(
    backend, by_kernel, from_environment, monkeypatch
) -> None:
    calls = []
    monkeypatch.setattr(cuda, "serves", lambda tensor: True)
    monkeypatch.setattr(
        cuda, "group_advantages", lambda rewards, **_: calls.append("advantages") or rewards
    )
    monkeypatch.setattr(
        cuda, "group_statistics", lambda rewards, **_: (None, calls.append("gate") or torch.ones(6))
    )
    monkeypatch.setattr(
        cuda, "mix", lambda sums, *_, **__: (calls.append("mix") or torch.ones(1), torch.ones(5))
    )
    options = wf.LossOptions(backend=backend)
    if from_environment:
        monkeypatch.setattr(backends, "_ENV_BACKEND", backend)
        options = None
    wf.group_advantages(REWARDS, options=options)
    wf.MixingGate()(REWARDS, options)
    assert calls == (["advantages", "gate", "mix"] if by_kernel else [])


def test_an_objective_passes_its_backend_on(monkeypatch) -> None:
    monkeypatch.setattr(cuda, "serves", lambda tensor: True)
    monkeypatch.delattr(cuda, "group_statistics")  # a call of one of them fails
    monkeypatch.delattr(cuda, "group_advantages")
    monkeypatch.delattr(cuda, "mix")
    row = torch.tensor([0, 1])
    batch = wf.HybridBatch(row, row, torch.full_like(row, -1), torch.tensor([[1.0, 5.0]]))
    for backend in ("reference", "cpu"):
        objective = wf.HybridObjective(LAYOUT, options=wf.LossOptions(backend=backend))
        objective(torch.randn(2, H), torch.randn(V, H), batch)


def batch_of(rewards) -> wf.HybridBatch:
    row = torch.arange(REWARDS.numel()).repeat_interleave(2)
    return wf.HybridBatch(row % V, row, torch.full_like(row, -1), rewards)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_gate_moves_once_in_a_step_that_is_computed_twice(backend, use_reentrant) -> None:
    def step(objective, hidden, weight, rewards) -> torch.Tensor:
        return objective(hidden, weight, batch_of(rewards)).loss

    def results(inside: bool) -> list[torch.Tensor]:
        g = torch.Generator().manual_seed(0)
        options = wf.LossOptions(backend=backend)
        objective = wf.HybridObjective(
            LAYOUT, policy_scope="all", gate=wf.MixingGate(ema=0.5, initial=0.1), options=options
        )
        leaves = [torch.randn(n, H, generator=g).requires_grad_() for n in (12, V)]
        lambdas = []
        for rewards in (REWARDS, REWARDS.flip(1) + 1):
            args = (objective, *leaves, rewards)
            loss = checkpoint(step, *args, use_reentrant=use_reentrant) if inside else step(*args)
            loss.backward()
            lambdas.append(objective.gate.value)
        return [*lambdas, *(leaf.grad for leaf in leaves)]

    for got, want in zip(results(True), results(False), strict=True):
        assert torch.equal(got, want)


def run_steps(order: list[str], rewards: dict[str, torch.Tensor], *, inside: bool):
    """Steps "F1", "F2", … forward and "B1", … backward, each moving the gate; λ's and gradients."""
    g = torch.Generator().manual_seed(0)
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", gate=wf.MixingGate(ema=0.5, initial=0.1)
    )
    leaves = [torch.randn(n, H, generator=g).requires_grad_() for n in (12, V)]
    losses, found = {}, []

    def step(hidden, weight, rewards) -> torch.Tensor:
        return objective(hidden, weight, batch_of(rewards)).loss

    for name in order:
        if name[0] == "F":
            args = (*leaves, rewards[name[1]])
            losses[name[1]] = (
                checkpoint(step, *args, use_reentrant=False) if inside else step(*args)
            )
            found.append(objective.gate.value)
        else:
            found += torch.autograd.grad(losses[name[1]], leaves, retain_graph=name[2:] == "r")
    return found


@pytest.mark.parametrize("order", [
    "F1 B1 F2 B2 F3 B3", "F1 F2 F3 B1 B2 B3", "F1 F2 F3 B3 B2 B1", "F1 F2 B1 F3 B2 B3",
    "F1 B1r B1 F2 B2r B2r", "F1 F2 B2 F3 B3",
])  # fmt: skip
@pytest.mark.parametrize("fresh", [False, True])
def test_micro_batches_that_are_computed_twice_keep_their_own_lambda(order: str, fresh) -> None:
    """With ``fresh`` each pass inside the checkpoint makes a new tensor of the rewards."""
    rewards = {"1": REWARDS, "2": REWARDS + 1, "3": REWARDS.flip(1)}
    given = {name: r.numpy() for name, r in rewards.items()} if fresh else rewards
    got, want = (run_steps(order.split(), given, inside=inside) for inside in (True, False))
    for ours, truth in zip(got, want, strict=True):
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("saved", ["aten.sum", "aten.where", "linear_logprob", "nothing"])
@pytest.mark.parametrize("fresh", [False, True], ids=["same table", "new table"])
def test_selective_checkpointing_does_not_see_the_ops_of_the_gate(backend, saved, fresh) -> None:
    """It matches the ops of both passes by their order; the gate's run only in the first."""

    def policy(ctx, op, *args, **kwargs) -> CheckpointPolicy:
        kept = saved in str(op)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    found = []
    for selective in (False, True):
        objective = wf.HybridObjective(
            LAYOUT, policy_scope="all", gate=wf.MixingGate(ema=0.5, initial=0.1),
            options=wf.LossOptions(backend=backend),
        )  # fmt: skip
        g = torch.Generator().manual_seed(0)
        leaves = [torch.randn(n, H, generator=g).requires_grad_() for n in (12, V)]

        def step(hidden, weight, objective=objective) -> torch.Tensor:
            table = REWARDS.clone() if fresh else REWARDS
            return objective(hidden, weight, batch_of(table)).loss

        contexts = partial(create_selective_checkpoint_contexts, policy)
        options = {"use_reentrant": False, "context_fn": contexts}
        loss = checkpoint(step, *leaves, **options) if selective else step(*leaves)
        found.append((*torch.autograd.grad(loss, leaves), objective.gate.value))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


def test_one_buffer_of_rewards_for_every_step() -> None:
    objective = wf.HybridObjective(LAYOUT, policy_scope="all", gate=wf.MixingGate(ema=0.5))
    plain = wf.MixingGate(ema=0.5)
    buffer, hidden = torch.empty_like(REWARDS), torch.randn(12, H, requires_grad=True)
    weight = torch.randn(V, H)
    for step in range(20):
        buffer.copy_(REWARDS + step / 10)
        loss = checkpoint(
            lambda h: objective(h, weight, batch_of(buffer)).loss, hidden, use_reentrant=False
        )
        loss.backward()
        assert torch.equal(objective.gate.value, plain(REWARDS + step / 10))


def test_an_ambiguous_or_forgotten_lambda_raises() -> None:
    """The same rewards twice, with a different λ each time."""
    with pytest.raises(RuntimeError, match=r"rewards of 2 steps .*pass rl_weight=gate\(rewards\)"):
        run_steps(["F1", "F2", "B1"], {"1": REWARDS, "2": REWARDS}, inside=True)
    many = {str(step): REWARDS + step for step in range(10)}
    for_ever = [f"F{step}" for step in range(10)] * 2
    with pytest.raises(RuntimeError, match="rewards of 2 steps"):
        run_steps([*for_ever, "B9"], many, inside=True)
    gate = wf.MixingGate()
    hidden = torch.zeros(2, requires_grad=True)
    hidden.register_hook(lambda grad: gate(REWARDS) * grad)
    with pytest.raises(RuntimeError, match="rewards of 0 steps"):
        hidden.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("gate", [0.3, None, "initial"])
def test_a_default_dtype_or_device_changes_no_bit(backend, gate) -> None:
    def results() -> list[torch.Tensor]:
        layout = wf.ModalityLayout(vocab_size=V, speech=((12, 22),))
        made = wf.MixingGate(initial=0.3) if gate == "initial" else gate
        options = wf.LossOptions(backend=backend)
        objective = wf.HybridObjective(layout, policy_scope="all", gate=made, options=options)
        leaf = hidden.clone().requires_grad_()
        outs = [objective(leaf, weight, batch), objective(leaf, weight, batch, rl_weight=0.3)]
        loss = sum(out.loss for out in outs)
        assert all(out.rl_weight.dtype == torch.float32 for out in outs)
        values = [out.metrics[name] for out in outs for name in sorted(out.metrics)]
        return [loss, *values, *torch.autograd.grad(loss, leaf)]

    hidden, weight, batch = torch.randn(12, H), torch.randn(V, H), batch_of(REWARDS)
    assert_defaults_change_no_bit(results, device="meta")


def test_the_device_that_a_process_group_reduces_on() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for device, config, wanted in (
        (cpu, "cpu:gloo,cuda:nccl", "cpu"), (gpu, "cpu:gloo,cuda:nccl", "cuda"),
        (cpu, "cuda:nccl", "cuda"), (gpu, "cpu:gloo", "cpu"), (cpu, "xpu:xccl", "xpu"),
    ):  # fmt: skip
        assert all_reduce._place_of_backend(device, config) == wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the rewards go to the GPU and back")
def test_a_group_with_a_backend_for_a_missing_device_is_refused(tmp_path) -> None:
    dist.init_process_group(
        backend="cuda:gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        with pytest.raises(ValueError, match="process group: got a backend for cuda tensors only"):
            wf.MixingGate()(REWARDS)
    finally:
        dist.destroy_process_group()
