"""A packed row has the hidden states and the gradients that it has alone, under every attention."""

import pytest
import torch
from torch.nn.attention import varlen as torch_varlen
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import masking_utils

from wavalign_fast.errors import UserError
from wavalign_fast.models import PackedRows, hidden_states, recompute_activations, set_attention
from wavalign_fast.models import varlen as ours

from .tiny import gradients, rows_of, tiny_model

LENGTHS = (7, 12, 1, 5)
GPU = torch.accelerator.is_available()
# `eager` has its softmax in float32, and flex_attention has no float64 on a CPU.
TOLERANCES = {"sdpa": 1e-12, "varlen": 1e-12, "eager": 1e-6, "flex_attention": 1e-6}
FAST = ("sdpa", "eager", "varlen")


def uncompiled_block_mask(**arguments):
    return create_block_mask(**arguments | {"_compile": False})


@pytest.fixture(autouse=True)
def uncompiled_flex_attention(monkeypatch):
    """Compiling it costs half a minute, and changes how it is computed, not what."""
    from transformers.integrations.flex_attention import WrappedFlexAttention

    monkeypatch.setattr(masking_utils, "create_block_mask", uncompiled_block_mask)
    monkeypatch.setattr(WrappedFlexAttention, "__init__", lambda self, training: None)
    monkeypatch.setattr(
        WrappedFlexAttention, "_compiled_flex_attention", staticmethod(flex_attention)
    )


def weights_of(hidden):
    """A different weight for every value, so that no gradient cancels."""
    return torch.linspace(-1, 2, hidden.numel(), dtype=hidden.dtype).view_as(hidden)


def states_and_gradients(model, blocks):
    model.zero_grad()
    hidden = hidden_states(model, blocks)
    if hidden.requires_grad:
        (hidden * weights_of(hidden)).sum().backward()
    return hidden.detach(), gradients(model)


def model_with(attention, **changes):
    dtype = torch.float32 if attention == "flex_attention" else torch.float64
    model = tiny_model(dtype, **changes)
    if attention == "flex_attention" and not GPU:
        model.set_attn_implementation(attention)  # for its forward pass, the only one on a CPU
        return model.requires_grad_(False)
    set_attention(model, attention)
    return model


def assert_the_same(found, wanted, tolerance):
    """Of the largest value of each tensor: the gradient of a key's bias is a sum that cancels."""
    assert found[1].keys() == wanted[1].keys()
    pairs = [("hidden", *each) for each in zip(found[:1], wanted[:1], strict=True)]
    pairs += [(name, found[1][name], gradient) for name, gradient in wanted[1].items()]
    largest = max(float(value.abs().max()) for _, _, value in pairs)
    for name, value, truth in pairs:
        scale = largest if name.endswith("k_proj.bias") else float(truth.abs().max())
        assert float((value - truth).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("attention", TOLERANCES)
def test_packed_rows_are_those_alone(attention):
    model = model_with(attention)
    rows = rows_of(*LENGTHS)
    alone = states_and_gradients(model, [row[None] for row in rows])
    packed = states_and_gradients(model, [PackedRows.of(rows)])
    assert packed[0].shape == (sum(LENGTHS), 32)
    assert_the_same(packed, alone, TOLERANCES[attention])


@pytest.mark.parametrize("attention", FAST)
def test_a_sliding_window_ends_at_the_border_too(attention):
    settings = {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1}
    model = model_with(attention, **settings)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    rows = rows_of(*LENGTHS)
    sdpa = model_with("sdpa", **settings)
    alone = states_and_gradients(sdpa, [row[None] for row in rows])
    assert_the_same(
        states_and_gradients(model, [PackedRows.of(rows)]), alone, TOLERANCES[attention]
    )
    whole = states_and_gradients(model_with("sdpa"), [row[None] for row in rows])
    assert (whole[0] - alone[0]).abs().max() > 1e-3  # the window has an effect


@pytest.mark.parametrize("attention", FAST)
def test_blocks_of_both_kinds_are_in_order(attention):
    model = model_with(attention)
    rows = rows_of(4, 4, 9, 2)
    blocks = [torch.stack(rows[:2]), PackedRows.of(rows[2:])]
    alone = hidden_states(model, [row[None] for row in rows])
    torch.testing.assert_close(hidden_states(model, blocks), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attention", FAST)
def test_one_packed_row_and_rows_of_one_id(attention):
    model = model_with(attention)
    for lengths in ((6,), (1, 1, 1), (1,)):
        rows = rows_of(*lengths)
        alone = hidden_states(model, [row[None] for row in rows])
        packed = hidden_states(model, [PackedRows.of(rows)])
        torch.testing.assert_close(packed, alone, rtol=1e-6, atol=1e-6)


def test_a_row_sees_nothing_of_another_that_changes():
    for attention in FAST:
        model = model_with(attention)
        rows = rows_of(*LENGTHS)
        changed = [rows_of(7, seed=1)[0], *rows[1:]]
        one, other = (hidden_states(model, [PackedRows.of(given)]) for given in (rows, changed))
        assert torch.equal(one[7:], other[7:]), attention
        assert not torch.equal(one[:7], other[:7]), attention


def test_recomputed_activations_keep_rows_apart():
    rows = rows_of(*LENGTHS)
    wanted = states_and_gradients(model_with("varlen"), [PackedRows.of(rows)])
    model = model_with("varlen")
    recompute_activations(model)
    assert_the_same(states_and_gradients(model, [PackedRows.of(rows)]), wanted, 1e-12)


def test_what_is_packed():
    packed = PackedRows.of(rows_of(3, 1, 2))
    assert packed.ids.shape == packed.position_ids.shape == (1, 6)
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packed.borders.tolist() == [0, 3, 4, 6] and packed.borders.dtype == torch.int32
    assert packed.longest == 3


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([], "no row"),
        ([torch.ones(2, dtype=torch.int64), torch.ones(0, dtype=torch.int64)], r"the shape \(0,\)"),
        ([torch.ones(2, 3, dtype=torch.int64)], r"the shape \(2, 3\)"),
    ],
)
def test_rows_that_cannot_be_packed_are_named(rows, seen):
    with pytest.raises(UserError, match=f"packed rows: got {seen}, want rows of at least one id"):
        PackedRows.of(rows)


def test_a_mask_beside_packed_rows_is_refused():
    model = model_with("varlen")
    packed = PackedRows.of(rows_of(3, 2))
    arguments = packed.model_arguments(model)
    for mask in (torch.tensor([[1, 1, 1, 1, 0]]), torch.ones(1, 1, 5, 5, dtype=torch.bool)):
        with pytest.raises(UserError, match=r"packed rows: got a mask of .* wanted none"):
            model.model(**arguments | {"attention_mask": mask})


def test_borders_that_a_model_does_not_hand_on_are_missed():
    model = model_with("varlen")
    arguments = PackedRows.of(rows_of(3, 2)).model_arguments(model)
    kept = {name: arguments[name] for name in ("input_ids", "position_ids", "attention_mask")}
    with pytest.raises(UserError, match="packed rows: Qwen2Attention got no borders"):
        model.model(**kept)


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [({"softcap": 30.0}, "softcap"), ({"s_aux": 1}, "s_aux"), ({"dropout": 0.1}, "dropout 0.1")],
)
def test_scores_that_varlen_does_not_know_are_refused(arguments, seen):
    query = torch.ones(1, 2, 5, 4)
    borders = {"cu_seq_lens_q": torch.tensor([0, 5]), "max_length_q": 5}
    with pytest.raises(UserError, match=f"packed rows: varlen got {seen}, wanted"):
        ours.varlen(torch.nn.Identity(), query, query, query, None, **borders, **arguments)


def test_layers_that_carry_a_row_into_the_next_are_refused():
    model = model_with("sdpa")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError, match=r"packed rows: .* has layers of \['linear_attention'\]"):
        hidden_states(model, [PackedRows.of(rows_of(3, 2))])


def test_rollouts_under_varlen_are_those_of_sdpa():
    """Rows padded on the left, with a mask and a cache."""
    prompts = torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8]])
    arguments = dict(
        attention_mask=(prompts > 0).long(), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    texts = [model_with(name).eval().generate(prompts, **arguments) for name in ("sdpa", "varlen")]
    assert texts[0].shape == (2, 9) and torch.equal(*texts)


def test_a_model_saved_under_varlen_loads_everywhere(tmp_path):
    from transformers import AutoModelForCausalLM

    model_with("varlen").float().save_pretrained(tmp_path)
    assert "varlen" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def stand_in(query, key, value, borders, scale, causal_window):
    """The definition of torch's kernel, as its documentation has it."""
    out = []
    for start, end in zip(borders.tolist(), borders.tolist()[1:], strict=False):
        q, k, v = (each[start:end].transpose(0, 1) for each in (query, key, value))
        mask = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        if causal_window >= 0:
            mask = mask.triu(-causal_window)
        arguments = dict(attn_mask=mask, scale=scale, enable_gqa=True)
        out.append(scaled_dot_product_attention(q, k, v, **arguments).transpose(0, 1))
    return torch.cat(out)


def of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    assert is_causal and query.shape == key.shape
    return stand_in(query, key, value, cu_seq_q, None, -1)


def of_torch_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1),
    enable_gqa=False,
):  # fmt: skip
    assert window_size[1] == 0 and enable_gqa and max_q == max_k == int(cu_seq_q.diff().max())
    return stand_in(query, key, value, cu_seq_q, scale, window_size[0])


@pytest.mark.parametrize("kernel", [of_torch_2_10, of_torch_2_13])
@pytest.mark.parametrize("window", [None, 3])
def test_torchs_kernel_is_called_as_its_release_wants_it(monkeypatch, kernel, window):
    """What a GPU computes, with a stand-in for the kernel, which has none for a CPU."""
    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    make = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 8, generator=make) for heads in (4, 2, 2)
    )
    borders = PackedRows.of(rows_of(*LENGTHS)).borders
    packed = (each[0].transpose(0, 1) for each in (query, key, value))
    settings = (borders, max(LENGTHS), 0.7, window)
    if kernel is of_torch_2_10 and window:
        with pytest.raises(UserError, match="a sliding window of 3 is shorter than a row of 12"):
            ours._flash(*packed, *settings)
        return
    wanted = ours._row_by_row(query, key, value, borders, 0.7, window)
    found = ours._flash(*packed, *settings)
    torch.testing.assert_close(found.transpose(0, 1)[None], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_torchs_kernel_on_a_gpu(window):
    make = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), 64) for heads in (4, 2, 2)]
    found, wanted = (
        [torch.randn(shape, generator=make).bfloat16() for shape in shapes] for _ in range(2)
    )
    for given, copy in zip(found, wanted, strict=True):
        copy.copy_(given)
    borders = PackedRows.of(rows_of(*LENGTHS)).borders
    found = [each.cuda().requires_grad_() for each in found]
    wanted = [each.double().requires_grad_() for each in wanted]
    out, _ = ours.varlen(
        torch.nn.Identity(), *found, None, scaling=0.2, sliding_window=window,
        cu_seq_lens_q=borders.cuda(), max_length_q=max(LENGTHS),
    )  # fmt: skip
    truth = ours._row_by_row(*wanted, borders, 0.2, window).transpose(1, 2)
    torch.testing.assert_close(out.cpu().double(), truth, rtol=2e-2, atol=2e-2)
    out.sum().backward(), truth.sum().backward()
    for given, copy in zip(found, wanted, strict=True):
        torch.testing.assert_close(given.grad.cpu().double(), copy.grad, rtol=5e-2, atol=5e-2)
