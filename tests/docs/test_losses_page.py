"""What docs/losses.md says of its code: padding and micro-batches change no gradient."""

import pytest
import torch

pytest.importorskip("transformers")

import wavalign_fast as wf
from tests.docs.pages import ROOT, blocks_of
from tests.docs.scenes import Tokenizer, parts_of, small_model, step

PYTHON = [block.text for block in blocks_of(ROOT / "docs" / "losses.md")]
PREPARED = {"torch": torch, "wf": wf}


def block_with(text):
    (found,) = [block for block in PYTHON if text in block]
    return found


def execute(code, names):
    """The names after a block has run."""
    scope = PREPARED | names
    exec(compile(code, "losses.md", "exec"), scope)
    return scope


@pytest.fixture
def names():
    return {"tokenizer": Tokenizer(), "model": small_model(0), "reference": small_model(1)}


def whole_step(names):
    return execute(block_with("from_tokenizer"), names | step(left=False))


def test_the_step_gives_a_loss_with_gradients(names, capsys):
    scope = whole_step(names)
    assert capsys.readouterr().out.count("tensor(") == 4
    assert scope["out"].loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["model"].parameters())
    assert scope["objective"].gate.value == scope["out"].rl_weight


def test_left_padding_gives_the_loss_of_right_padding(names):
    layout = whole_step(names)["layout"]
    losses, gradients = [], []
    for left in (True, False):
        names["model"].zero_grad()
        scope = execute(block_with("def score"), names | {"layout": layout} | step(left))
        losses.append(scope["out"].loss.item())
        gradients.append(names["model"].lm_head.weight.grad)
        assert scope["old_logp"].shape == scope["ref_logp"].shape == (4, 8)
        assert scope["batch"].old_logp is not None and scope["batch"].ref_logp is not None
        assert scope["out"].metrics["text_kl"] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_micro_batches_add_up_to_the_step(names):
    scope = whole_step(names)
    whole = names["model"].lm_head.weight.grad.clone()
    names["model"].zero_grad()
    scope["objective"].gate = wf.MixingGate()
    execute(block_with("objective.normalisers"), scope | parts_of(step(left=False)))
    assert torch.allclose(names["model"].lm_head.weight.grad, whole, rtol=1e-4, atol=1e-7)
