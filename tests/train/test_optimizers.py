"""The optimizers by name: each moves the weights as its definition does, and can be saved."""

import copy
import io
import sys

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.models.tiny import rows_of, tiny_model
from tests.ranks import run_ranks
from wavalign_fast.config.schema import OptimizerConfig
from wavalign_fast.errors import UserError
from wavalign_fast.models import decoder_layers
from wavalign_fast.train.optimizer import build_optimizer, set_learning_rate

MUON = OptimizerConfig(
    name="muon", lr=0.02, momentum=0.8, weight_decay=0.3, betas=(0.7, 0.8), eps=1e-3
)
ADAMW8BIT = OptimizerConfig(name="adamw8bit", lr=0.02, weight_decay=0.3, betas=(0.7, 0.8))


def backward(model, step: int) -> None:
    (ids,) = rows_of(9, seed=step)
    model.zero_grad()
    model(ids[None], labels=ids[None], use_cache=False).loss.backward()


def train(model, optimizers, steps=range(3)):
    for step in steps:
        backward(model, step)
        for optimizer in optimizers:
            optimizer.step()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def in_a_layer(name: str) -> bool:
    return ".layers." in name and not name.endswith(("bias", "norm.weight"))


def test_muon_moves_matrices_of_layers_as_torchs_own_and_all_else_as_adamw():
    model = tiny_model(torch.float32)
    named = dict(model.named_parameters())
    matrices = [weight for name, weight in named.items() if in_a_layer(name)]
    assert len(matrices) == 2 * 7
    outer = [named[name] for name in ("model.embed_tokens.weight", "lm_head.weight")]
    vectors = [weight for weight in named.values() if weight.ndim == 1]
    both = {"betas": MUON.betas, "eps": MUON.eps, "lr": MUON.lr}
    wanted = train(
        model,
        [
            torch.optim.Muon(
                matrices, lr=MUON.lr, momentum=MUON.momentum, weight_decay=MUON.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(outer, weight_decay=MUON.weight_decay, **both),
            torch.optim.AdamW(vectors, weight_decay=0.0, **both),
        ],
    )  # fmt: skip
    model = tiny_model(torch.float32)
    found = train(model, [build_optimizer(model, MUON)])
    # Torch's iteration runs in bfloat16, where a last bit of a gradient shows in the third digit.
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=5e-3, atol=2e-3)


def saved(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_it_goes_on(config, dtype):
    """Saved after two steps and loaded into another model, with another rate from then on."""
    model = tiny_model(dtype)
    optimizer = build_optimizer(model, config)
    train(model, [optimizer], range(2))
    other = tiny_model(dtype)
    other.load_state_dict(model.state_dict())
    continued = build_optimizer(other, config)
    continued.load_state_dict(saved(optimizer.state_dict()))
    for each in (optimizer, continued):
        set_learning_rate(each, 0.5)
    wanted, found = train(model, [optimizer], range(2, 4)), train(other, [continued], range(2, 4))
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_saved_optimizer_goes_on(name):
    assert_it_goes_on(OptimizerConfig(name=name, lr=0.02, weight_decay=0.3), torch.float32)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_rate_reaches_every_parameter(name):
    model = tiny_model(torch.float32)
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=0.1))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    set_learning_rate(optimizer, 0.0)
    for name, weight in train(model, [optimizer]).items():
        assert torch.equal(weight, before[name]), name


def test_muon_without_a_matrix_is_refused():
    model = tiny_model()
    for layer in decoder_layers(model):
        layer.requires_grad_(False)
    with pytest.raises(UserError, match=r"optimizer\.name: muon given, but no matrix"):
        build_optimizer(model, MUON)


def test_muon_of_matrices_alone():
    model = tiny_model(torch.float32)
    for name, weight in model.named_parameters():
        weight.requires_grad_(in_a_layer(name))
    optimizer = build_optimizer(model, MUON)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    after = train(model, [optimizer])
    assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before)


def sharded(mesh):
    model = tiny_model(torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded_muon():
    """Two steps, a checkpoint into another model, another step: the weights of all three."""
    mesh = init_device_mesh("cpu", (2,))
    model = sharded(mesh)
    optimizer = build_optimizer(model, MUON)
    train(model, [optimizer], range(2))
    other = sharded(mesh)
    other.load_state_dict(model.state_dict())
    continued = build_optimizer(other, MUON)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    set_optimizer_state_dict(other, continued, optim_state_dict=state)
    both = [train(m, [o], [2]) for m, o in ((model, optimizer), (other, continued))]
    return [{name: weight.full_tensor() for name, weight in each.items()} for each in both]


def test_sharded_muon_is_that_of_one_process():
    """Both ranks have the same rows, whose gradients FSDP2 averages: those of one process."""
    model = tiny_model(torch.float32)
    wanted = train(model, [build_optimizer(model, MUON)])
    for both in run_ranks(2, sharded_muon):
        for found in both:
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_missing_torchao_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"adamw8bit needs the package torchao \(pip install"):
        build_optimizer(tiny_model(), ADAMW8BIT)


@pytest.fixture
def torchao():
    """Compiling its kernel for every shape of a weight costs seconds and changes no value here."""
    pytest.importorskip("torchao")
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def test_adamw8bit_moves_weights_nearly_as_adamw(torchao):
    settings = ADAMW8BIT.model_dump() | {"eps": 1e-3}
    moved = []
    for name in ("adamw", "adamw8bit"):
        # One matrix is large enough for moments of 8 bits, the smaller ones stay exact.
        model = tiny_model(torch.float32, intermediate_size=128)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        optimizer = build_optimizer(model, OptimizerConfig(**settings | {"name": name}))
        moved.append({n: w - before[n] for n, w in train(model, [optimizer]).items()})
    kinds = {type(state["exp_avg"]).__name__ for state in optimizer.state.values()}
    assert kinds == {"Tensor", "OptimState8bit"}
    for name, wanted in moved[0].items():
        difference = (moved[1][name] - wanted).norm() / wanted.norm()
        assert difference < (0.1 if ".mlp." in name else 1e-2), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adamw8bit_goes_on(torchao, dtype):
    assert_it_goes_on(ADAMW8BIT, dtype)


def test_bfloat16_weights_are_rounded_to_the_right_mean_and_alike_in_every_run(torchao):
    """A step of 1e-3 of a weight's resolution moves one weight in a thousand by all of it."""
    ends = []
    for _ in range(2):
        weight = torch.nn.Parameter(torch.full((100_000,), 1.0, dtype=torch.bfloat16))
        model = torch.nn.Module()
        model.weight = weight
        rate = 2.0**-7 / 1000  # 2⁻⁷ is the next bfloat16 after 1
        optimizer = build_optimizer(model, OptimizerConfig(name="adamw8bit", lr=rate, eps=1e-30))
        before = torch.get_rng_state()
        steps = []
        for _ in range(2):
            weight.grad = torch.full_like(weight, -1.0)
            optimizer.step()
            steps.append((weight.double() - 1).mean().item() / rate)
        assert torch.equal(torch.get_rng_state(), before)
        assert abs(steps[0] - 1) < 0.35 and abs(steps[1] - 2) < 0.5  # 100 ± 10 of 100 000 moved
        ends.append(weight.detach())
    assert torch.equal(*ends)
