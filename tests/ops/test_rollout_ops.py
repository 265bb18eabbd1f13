"""The C++ ops of a decoded token against float64, over odd sizes, types and threads."""

import pytest
import torch
import torch.nn.functional as F

from wavalign_fast.ops.rollout import kernels_take

assert kernels_take(torch.zeros(1)), "the C++ kernels are missing"
OPS = torch.ops.wavalign_fast
EPS = 1e-5

SIZES = [  # rows, heads, kv, d, prompts, group, prefix, length
    (1, 1, 1, 2, 1, 1, 1, 0),
    (3, 2, 1, 6, 1, 3, 0, 4),
    (5, 6, 2, 20, 3, 2, 7, 9),
    (6, 4, 4, 32, 2, 4, 17, 70),
    (4, 7, 1, 72, 2, 2, 5, 0),
    (2, 4, 2, 128, 2, 1, 130, 33),
]


def operands(size, dtype=torch.float32, *, norms=False, seed=0):
    """Arguments of the op; rows are in another order than their slots, prompts are ragged."""
    rows, heads, kv, d, prompts, group, prefix, length = size
    make = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=make).to(dtype)

    slots = torch.randperm(prompts * group, generator=make)[:rows]
    start = torch.randint(prefix, (prompts,), generator=make) if prefix else torch.zeros(prompts)
    angles = torch.rand(300, d, generator=make) * 6
    weights = (random(d) + 1, random(d) + 1) if norms else (None, None)
    return [
        random(rows, (heads + 2 * kv) * d),
        torch.randint(300, (rows,), generator=make),
        angles.cos(),
        angles.sin(),
        *weights,
        EPS,
        random(prompts * group, kv, length + 3, d),
        random(prompts * group, kv, length + 3, d),
        random(prompts, kv, prefix, d),
        random(prompts, kv, prefix, d),
        start.long(),
        slots,
        length,
        d**-0.5,
    ]


def rotated(x, cos, sin, norm):
    """[N, heads, d] by transformers' formulas."""
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * norm.double()
    a, b = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]


def expected(arguments):
    """The result, and the new keys and values, in float64 and by plain loops."""
    qkv, at, cos, sin, q_norm, k_norm, _, keys, values, pk, pv, start, slots, length, scale = (
        arguments
    )
    kv, d = keys.shape[1], keys.shape[3]
    parts = qkv.double().view(len(qkv), -1, d)
    q, k, v = parts.split([parts.shape[1] - 2 * kv, kv, kv], 1)
    cos, sin = cos[at].double(), sin[at].double()
    q, k = rotated(q, cos, sin, q_norm), rotated(k, cos, sin, k_norm)
    rows = []
    for row, slot in enumerate(slots.tolist()):
        prompt = slot * len(pk) // len(keys)
        first = int(start[prompt])
        own_keys = torch.cat([pk[prompt, :, first:], keys[slot, :, :length]], 1).double()
        own_values = torch.cat([pv[prompt, :, first:], values[slot, :, :length]], 1).double()
        own_keys = torch.cat([own_keys, k[row, :, None]], 1)
        own_values = torch.cat([own_values, v[row, :, None]], 1)
        shared = q.shape[1] // kv
        own_keys, own_values = (it.repeat_interleave(shared, 0) for it in (own_keys, own_values))
        scores = (q[row, :, None] * own_keys).sum(-1) * scale
        rows.append((scores.softmax(-1)[:, :, None] * own_values).sum(1).flatten())
    return torch.stack(rows), k, v


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_attention_equals_float64(size, dtype, norms):
    arguments = operands(size, dtype, norms=norms)
    wanted, key, value = expected(arguments)
    keys, values, slots, length = *arguments[7:9], *arguments[12:14]
    before = keys.clone(), values.clone()
    found = OPS.decode_attention(*arguments)
    assert found.dtype == dtype and found.shape == wanted.shape
    tolerance = (
        {"atol": 5e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 5e-2, "rtol": 2e-2}
    )
    torch.testing.assert_close(found.double(), wanted, **tolerance)
    for cache, old, new in zip((keys, values), before, (key, value), strict=True):
        torch.testing.assert_close(cache[slots, :, length].double(), new, **tolerance)
        old[slots, :, length] = cache[slots, :, length]
        assert torch.equal(cache, old), "something else was written"


def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads():
    whole = operands((6, 4, 2, 40, 3, 2, 90, 80))
    rows = OPS.decode_attention(*whole)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(OPS.decode_attention(*whole), rows)
    finally:
        torch.set_num_threads(threads)
    for row in range(6):
        alone = list(whole)
        for index in (0, 1, 12):
            alone[index] = whole[index][row : row + 1]
        assert torch.equal(OPS.decode_attention(*alone)[0], rows[row])


def test_large_scores_do_not_overflow_and_nan_stays_in_its_row():
    arguments = operands((4, 2, 1, 16, 2, 2, 3, 5))
    arguments[0] *= 1e3
    wanted, *_ = expected(arguments)
    torch.testing.assert_close(
        OPS.decode_attention(*arguments).double(), wanted, atol=0.5, rtol=1e-3
    )
    arguments[0][2, 0] = torch.nan
    found = OPS.decode_attention(*arguments).isnan().any(1)
    assert found.tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("index", "value", "error", "message"),
    [
        (0, torch.zeros(5, 65), ValueError, "qkv: got 65 columns"),
        (0, torch.zeros(5, 6, 20), ValueError, "qkv: got 3 dimensions"),
        (0, torch.zeros(5, 200).double(), TypeError, "qkv: got Double, want float32 or bf"),
        (0, torch.zeros(200, 5).t(), ValueError, "qkv: got the strides"),
        (1, torch.full((5,), 300), IndexError, r"positions\[0\]: got 300, want 0 <= value < 300"),
        (2, torch.zeros(300, 10), ValueError, "cos: got the shape"),
        (4, torch.zeros(19), ValueError, "q_norm: got the shape"),
        (7, torch.zeros(6, 2, 12, 20).bfloat16(), TypeError, "keys: got BFloat16, want Float"),
        (8, torch.zeros(6, 2, 12, 22), ValueError, "values: got the shape"),
        (9, torch.zeros(4, 2, 7, 20), ValueError, "keys: got 6 rows, want a multiple of 4"),
        (11, torch.tensor([0, 0, 8]), IndexError, r"prefix_start\[2\]: got 8, want 0 <= value < 8"),
        (12, torch.tensor([0, 1, 2, 3, 6]), IndexError, r"slots\[4\]: got 6"),
        (12, torch.tensor([0, 1, 2, 3, -1]), IndexError, r"slots\[4\]: got -1"),
        (13, 12, ValueError, "length: got 12, want 0 <= length < 12"),
        (13, -1, ValueError, "length: got -1"),
    ],
)
def test_wrong_operands_are_refused(index, value, error, message):
    arguments = operands(SIZES[2])
    arguments[index] = value
    with pytest.raises(error, match=message):
        OPS.decode_attention(*arguments)


@pytest.mark.parametrize("size", [1, 7, 8, 33, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_elementwise_ops_equal_transformers_formulas(size, dtype):
    make = torch.Generator().manual_seed(size)
    x, update = (torch.randn(5, size, generator=make).to(dtype) for _ in range(2))
    weight = (torch.randn(size, generator=make) + 1).to(dtype)
    tolerance = (
        {"atol": 2e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 0, "rtol": 8e-3}
    )
    for added in (None, update):
        total = x if added is None else x + added
        own = x.clone()
        found = OPS.add_rms_norm_(own, added, weight, EPS)
        assert torch.equal(own, total)
        wide = total.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        torch.testing.assert_close(found, weight * normed.to(dtype), **tolerance)
    gate_up = torch.cat([x * 20, update], 1)
    wanted = F.silu(gate_up[:, :size]) * gate_up[:, size:]
    torch.testing.assert_close(OPS.silu_mul(gate_up), wanted, **tolerance)


def test_torch_knows_the_ops():
    arguments = operands(SIZES[2])
    torch.library.opcheck(OPS.decode_attention.default, tuple(arguments))
    x, weight = torch.randn(3, 9), torch.randn(9)
    torch.library.opcheck(OPS.add_rms_norm_.default, (x, torch.randn(3, 9), weight, EPS))
    torch.library.opcheck(OPS.silu_mul.default, (torch.randn(3, 8),))
    uniform = torch.rand(3, dtype=torch.float64)
    torch.library.opcheck(OPS.choose_tokens.default, (x, uniform, 0.7))


@pytest.mark.parametrize(
    ("op", "arguments", "error", "message"),
    [
        ("choose_tokens", (torch.zeros(2), torch.zeros(2).double(), 1.0), ValueError, "logits"),
        ("choose_tokens", (torch.zeros(2, 3), torch.zeros(2), 1.0), TypeError, "uniform: got Fl"),
        ("choose_tokens", (torch.zeros(2, 3), torch.zeros(3).double(), 1.0), ValueError, "uniform"),
        ("choose_tokens", (torch.zeros(2, 3), torch.zeros(2).double(), 0.0), ValueError, "temper"),
        ("silu_mul", (torch.zeros(2, 3),), ValueError, r"gate_up: got the shape \[2, 3\]"),
        ("silu_mul", (torch.zeros(4, 2).t(),), ValueError, "gate_up: got the strides"),
        ("add_rms_norm_", (torch.zeros(2, 3), None, torch.zeros(2), EPS), ValueError, "weight"),
        (
            "add_rms_norm_",
            (torch.zeros(2, 3), torch.zeros(2, 3).bfloat16(), torch.zeros(3), EPS),
            TypeError,
            "update: got BFloat16, want Float",
        ),
    ],
)
def test_wrong_operands_of_the_other_ops_are_refused(op, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(OPS, op)(*arguments)
