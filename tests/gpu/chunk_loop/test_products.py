"""The GEMMs of the loop: how many, how tall, in which type, and with the same bits."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch

import wavalign_fast as wf
from tests.gpu.chunk_loop import checks
from tests.gpu.chunk_loop.pretended import gpu_pretended
from wavalign_fast.ops.chunked import gradients, products
from wavalign_fast.ops.chunked.chunks import (
    PRODUCT_ROWS,
    ChunkOptions,
    chunk_heights,
    chunks_of,
)
from wavalign_fast.ops.chunked.interface import PITCH_ALIGN

GIB = 2**30
BF16, FP32 = torch.bfloat16, torch.float32


def chunk_options(budget: int = 2 * GIB, grad_rows: int = 10**9) -> ChunkOptions:
    return ChunkOptions("definition", budget, True, grad_rows)


class Library:
    """``torch.mm`` that rounds differently from some height on."""

    def __init__(self, other_from: int | None = None) -> None:
        self.other_from, self.heights, self.mm = other_from, [], torch.mm

    def __call__(self, a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        self.heights.append(len(a))
        self.mm(a, b, out=out)
        if self.other_from is not None and len(a) >= self.other_from:
            out *= 1 + 2**-22
        return out


@pytest.fixture(autouse=True)
def nothing_tried() -> Iterator[None]:
    with mock.patch.object(products, "_agrees", {}):
        yield


def logits(library: Library, rows: int, *, shift: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    head = torch.randn(61 * 24 + shift, generator=g)[shift:].view(61, 24)
    states = torch.randn(rows, 24, generator=g)
    out = torch.empty(-(-rows // PRODUCT_ROWS) * PRODUCT_ROWS, 61)
    with mock.patch.object(torch, "mm", library):
        products.logits_product(states, head, out, same_bits=True)
    return out[:rows]


def test_one_product_where_a_taller_one_has_the_same_bits():
    """Tried once for each shape; 600 rows are three low GEMMs, or one of 768."""
    library = Library()
    first = logits(library, 600)
    assert library.heights == [768, *[256] * 3, 768]
    again = Library()
    assert torch.equal(logits(again, 600), first) and again.heights == [768]
    assert torch.equal(logits(Library(), 256), first[:256])


def test_low_products_where_a_taller_one_rounds_otherwise():
    library = Library(other_from=512)
    found = logits(library, 600)
    assert library.heights == [768, 256, *[256] * 3]  # one differs, the others need not be computed
    assert torch.equal(found, logits(Library(), 600))
    again = Library(other_from=512)
    logits(again, 600)
    assert again.heights == [256] * 3


def test_each_height_is_tried_by_itself():
    library = Library(other_from=768)
    assert torch.equal(logits(library, 300), logits(Library(), 300))
    assert library.heights[-1] == 512
    logits(library, 600)
    assert library.heights[-3:] == [256] * 3


def test_a_head_between_16_bytes_is_never_multiplied_taller():
    library = Library()
    logits(library, 600, shift=1)
    assert library.heights == [256] * 3


def test_nothing_is_tried_while_a_graph_is_captured():
    with mock.patch.object(products, "capturing", lambda device: True):
        untried = Library()
        logits(untried, 600)
    tried = Library()
    logits(tried, 600)
    with mock.patch.object(products, "capturing", lambda device: True):
        logits(tried, 600)
    assert untried.heights == [256] * 3 and tried.heights[-2:] == [768, 768]


def test_a_trial_that_finds_no_memory_is_not_what_a_step_fails_of():
    library = Library()
    with mock.patch.object(products, "_noise", side_effect=torch.OutOfMemoryError):
        found = logits(library, 600)
    assert library.heights == [256] * 3 and torch.equal(found, logits(Library(), 600))


def test_a_trial_leaves_the_random_numbers_alone():
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    logits(Library(), 600)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("vocab", [2**k for k in range(8, 18)] + [168_072, 151_936, 1])
def test_chunks_take_all_that_the_budget_holds(vocab):
    """A vocabulary that is a power of two fills the budget to the byte."""
    found = chunks_of(10**6, vocab, 4, chunk_options())
    pitch = -(-vocab // PITCH_ALIGN) * PITCH_ALIGN
    tallest = max(rows.stop - rows.start for rows in found.rows)
    assert found.pitch == pitch
    assert found.buffer_rows * pitch * 4 <= 2 * GIB
    # One more GEMM would not fit, or there are no more rows.
    most = 2 * GIB // (pitch * 4 * PRODUCT_ROWS) * PRODUCT_ROWS
    assert len(found.rows) == -(-(10**6) // most)
    assert tallest <= found.buffer_rows


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 3072, 3073, 8192, 9000])
def test_chunks_are_alike(count):
    found = chunks_of(count, 168_072, 4, chunk_options()).rows
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(count))
    heights = [-(-(rows.stop - rows.start) // PRODUCT_ROWS) for rows in found]
    assert all(rows.start % PRODUCT_ROWS == 0 for rows in found)
    assert not heights or max(heights) - min(heights) <= 1


@pytest.mark.parametrize("most", [1, 2, 5, 12])
def test_rows_with_a_gradient_lie_in_as_few_chunks_as_they_can(most):
    for blocks in range(40):
        for grad_blocks in range(blocks + 1):
            heights = chunk_heights(blocks, grad_blocks, most)
            assert sum(heights) == blocks and all(0 < height <= most for height in heights)
            assert len(heights) == -(-blocks // most)
            starts = [sum(heights[:i]) for i in range(len(heights))]
            assert sum(start < grad_blocks for start in starts) == -(-grad_blocks // most)


def test_the_buffer_is_not_much_higher_than_its_rows():
    for count in range(1, 20_000, 7):
        found = chunks_of(count, 32_768, 4, chunk_options())
        tallest = max(rows.stop - rows.start for rows in found.rows)
        assert tallest <= found.buffer_rows < 1.5 * tallest + PRODUCT_ROWS


def test_the_buffer_has_few_sizes():
    """Otherwise each number of rows would leave the allocator a block that fits no other number."""
    sizes = {
        chunks_of(count, 168_072, 4, chunk_options()).buffer_rows for count in range(1, 20_000, 7)
    }
    assert sizes == {256, 512, 768, 1024, 1536, 2048, 3072}
    assert {chunks_of(9, 168_072, 4, chunk_options(budget=1)).buffer_rows} == {256}


def step(rows: int, budget: int | None = None, *, direct: bool = False):
    """GEMMs and allocations of a hybrid step's forward pass, all rows with a gradient."""
    vocab = 24
    batch = wf.HybridBatch(
        torch.randint(0, vocab, (rows,)), torch.full((rows,), -1), torch.zeros(rows).long(),
        torch.ones(1, 1),
    )  # fmt: skip
    objective = wf.HybridObjective(
        checks.LAYOUT, gate=0.5, options=wf.LossOptions(memory_budget=budget)
    )
    least = 0 if direct else gradients.DIRECT_FROM
    with gpu_pretended() as device, mock.patch.object(gradients, "DIRECT_FROM", least):
        hidden, weight = device.put(torch.randn(rows, 6).to(BF16)), torch.randn(vocab, 6).to(BF16)
        objective(hidden, device.put(weight), batch)
    return device


def test_every_sum_is_made_in_fp32():
    """Also dH, whose sum runs over the vocabulary: torch lets a library split it."""
    found = step(700).products
    assert [(p.rows, p.inner, p.columns) for p in found] == [
        (768, 6, 24), (700, 24, 6), (24, 700, 6)
    ]  # fmt: skip
    assert {p.result for p in found} == {FP32}


def test_a_large_head_of_one_chunk_is_rounded_by_its_product():
    assert [p.result for p in step(700, direct=True).products] == [FP32, FP32, BF16]
    in_chunks = step(700, budget=1, direct=True).products
    assert {p.result for p in in_chunks} == {FP32}


def test_the_first_chunk_writes_the_heads_gradient():
    """The first chunk writes: no fp32 zeros are written to add to."""
    device = step(700, budget=1)
    of_head = [name for name in device.launches if name in ("mm", "addmm")]
    assert of_head == ["mm"] * 5 + ["addmm", "mm", "mm", "addmm"]
    written = [name for name, shape, dtype in device.made if (shape, dtype) == ((24, 6), FP32)]
    assert written == ["empty_like", "mm", "addmm", "addmm"]


def test_many_chunks_are_summed_in_fp32():
    """If a sum of sixteen chunks is rounded to bfloat16 each time, it is off by several steps."""
    rows, vocab = 16 * PRODUCT_ROWS, 5
    g = torch.Generator().manual_seed(8)
    hidden = (1 + torch.rand(rows, 8, generator=g)).to(BF16)
    weight = (torch.randn(vocab, 8, generator=g) / 8).to(BF16)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    grads = []
    for backend, dtype, budget in (("reference", torch.float64, None), ("definition", BF16, 1)):
        options = checks.REFERENCE if budget is None else wf.LossOptions(memory_budget=budget)
        head = weight.to(dtype).requires_grad_()
        with checks.on(backend):
            wf.linear_logprob(
                hidden.to(dtype), head, targets, options=options
            ).logp.sum().backward()
        grads.append(head.grad.double())
    wanted, found = grads
    assert float(((found - wanted) / wanted).abs().max()) <= 2.0**-8
