"""Faults in the Triton kernels, their launchers and their table of tile shapes."""

from .planting import Fault

KERNELS = "wavalign_fast/ops/triton/kernels/"
INTERPRETER = "Triton source, interpreted"
AHEAD_OF_TIME = "Triton, compiled ahead of time"
STATS = "tests/gpu/conformance/interpreter/test_row_stats.py::"
GRADIENTS = "tests/gpu/conformance/interpreter/test_row_gradients.py::"
SCORER = "tests/gpu/conformance/interpreter/test_scorer.py::"
COMPACTION = "tests/gpu/conformance/interpreter/test_compaction.py::"
SCALE = "tests/gpu/conformance/interpreter/test_scale.py::"
BUDGET = "tests/gpu/budgets/triton/test_budgets.py::test_a_kernel_keeps_its_budget"
LAUNCHES = "tests/gpu/budgets/triton/test_launches.py::"


def _fault(rung: str, name: str, what: str, path: str, before: str, after: str, test: str) -> Fault:
    return Fault(
        name=f"triton-{name}",
        what=what,
        path=path,
        before=before,
        after=after,
        rung=rung,
        tests=(test,),
    )


def _wrong(name: str, what: str, file: str, before: str, after: str, test: str) -> Fault:
    return _fault(INTERPRETER, name, what, KERNELS + file, before, after, test)


ROWS = (
    _wrong(
        "mask-dropped",
        "the row's last block is written without its mask",
        "rows.py",
        "d.to(out.dtype.element_ty), mask=columns < vocab)",
        "d.to(out.dtype.element_ty))",
        GRADIENTS + "test_every_length_of_a_row[31]",
    ),
    _wrong(
        "tail-off-by-one",
        "the row's last block reads one column too many",
        "rows.py",
        "        inside = columns < vocab\n        z =",
        "        inside = columns <= vocab\n        z =",
        STATS + "test_every_length_of_a_row[31]",
    ),
    _wrong(
        "wrong-other",
        "columns beyond the vocabulary count as logits of 0",
        "rows.py",
        'other=float("-inf")).to(tl.float32)',
        "other=0.0).to(tl.float32)",
        STATS + "test_every_length_of_a_row[257]",
    ),
    _wrong(
        "int32-offset",
        "row offsets are computed in 32 bits",
        "rows.py",
        "    start = row * pitch_64 * 64\n",
        "    start = row.to(tl.int32) * pitch_64 * 64\n",
        GRADIENTS + "test_rows_beyond_2_to_the_31_elements",
    ),
    _wrong(
        "barrier-in-first-block-only",
        "only the first block of an in-place gradient waits for all reads",
        "rows.py",
        "if NARROW and block & (block - 1) == 0:",
        "if NARROW and block == 0:",
        GRADIENTS + "test_every_length_of_a_row[10241]",
    ),
    _wrong(
        "barrier-missing-in-tail",
        "a row of one block is overwritten while it is read",
        "rows.py",
        "    if NARROW:\n        tl.debug_barrier()\n",
        "",
        GRADIENTS + "test_every_length_of_a_row[31]",
    ),
    _wrong(
        "barrier-missing-after-statistics",
        "a row is overwritten while its statistics are taken",
        "rows.py",
        "    # The statistics' last reads come before the first write over them.\n"
        "    tl.debug_barrier()\n",
        "",
        GRADIENTS + "test_clipped_rows_and_rows_of_weight_zero_are_zero",
    ),
    _wrong(
        "sum-not-rescaled",
        "the running sum keeps its old maximum",
        "softmax.py",
        "total = kept * total + e",
        "total = total + e",
        STATS + "test_every_length_of_a_row[4003]",
    ),
    _wrong(
        "entropy-not-rescaled",
        "the entropy's running sum keeps its old maximum",
        "softmax.py",
        "weighted = kept * (weighted + fall * total) + e * below",
        "weighted = kept * weighted + e * below",
        STATS + "test_every_length_of_a_row[4003]",
    ),
    _wrong(
        "nan-lost",
        "the bound of the log-prob turns NaN into 0",
        "softmax.py",
        "logp = tl.where(logp > 0.0, 0.0, logp)",
        "logp = tl.minimum(logp, 0.0)",
        STATS + "test_a_row_of_nan_is_nan_and_alone",
    ),
    _wrong(
        "floor-is-a-logit",
        "a row of banned ids has a uniform distribution",
        "softmax.py",
        'total = tl.where(top > FLOOR, total, float("nan"))',
        "total = total + 0.0",
        STATS + "test_a_row_of_nan_is_nan_and_alone",
    ),
    _wrong(
        "target-cancels",
        "the target's own gradient is the difference of two numbers near 1",
        "rows.py",
        "own = by_lse * p - g * expm1(logp)",
        "own = (by_lse - g) * p + g",
        GRADIENTS + "test_the_targets_own_entry_keeps_its_digits_where_its_probability_is_near_1",
    ),
    _wrong(
        "zero-times-infinity",
        "the gradient of an entropy is NaN at a banned id",
        "rows.py",
        "tl.where(p > 0.0, log_p + entropy, 0.0)",
        "(log_p + entropy)",
        GRADIENTS + "test_every_set_of_derivatives[e]",
    ),
    _wrong(
        "clip-ignores-the-sign",
        "a negative advantage is clipped like a positive one",
        "token_math.py",
        "ratio * advantage <= clipped * advantage",
        "ratio <= clipped",
        GRADIENTS + "test_each_sign_is_clipped_on_its_side",
    ),
    _wrong(
        "unused-column-poisons",
        "NaN in the old log-prob of an anchor row reaches its gradient",
        "token_math.py",
        "g = tl.where(policy > 0.0, -policy * by_logp, 0.0)",
        "g = -policy * by_logp",
        GRADIENTS + "test_hybrid_rows_with_old_and_reference_log_probs[None]",
    ),
)

SCORES = (
    _wrong(
        "tail-counted-twice",
        "ids beyond the vocabulary count as its last id",
        "scorer.py",
        'tl.where(inside[None, :], tl.fma(z, scale, shift), float("-inf"))',
        "tl.fma(z, scale, shift)",
        SCORER + "test_every_shape[80-31]",
    ),
    _wrong(
        "nan-lost-in-a-tile",
        "the running maximum takes a NaN logit for a banned one",
        "scorer.py",
        "z = tl.maximum(z, FLOOR, propagate_nan=tl.PropagateNan.ALL)",
        "z = tl.maximum(z, FLOOR)",
        SCORER + "test_a_row_of_nan_is_nan_and_alone",
    ),
    _wrong(
        "programs-race",
        "every span writes the logit of every target",
        "scorer.py",
        "axis=1), mask=here)",
        "axis=1), mask=row < rows)",
        SCORER + "test_every_shape[64-1025]",
    ),
    _wrong(
        "unwritten-output",
        "a span's sum for the entropy stays in registers",
        "scorer.py",
        "        tl.store(weighteds + place, weighted, mask=row < rows)\n",
        "",
        SCORER + "test_every_shape[64-2]",
    ),
    _wrong(
        "merge-keeps-old-maximum",
        "spans are merged relative to the first span's maximum",
        "scorer.py",
        "total, weighted = rebase(row_top, total, weighted, new_top)",
        "total, weighted = total, weighted",
        SCORER + "test_more_spans_than_one_step_of_the_merge_takes",
    ),
    _wrong(
        "merge-misses-last-span",
        "the last spans of a large vocabulary are not merged",
        "scorer.py",
        "for first in tl.range(0, parts, PARTS):",
        "for first in tl.range(0, parts - PARTS + 1, PARTS):",
        SCORER + "test_every_shape[64-1025]",
    ),
    _wrong(
        "tf32",
        "products of fp32 operands lose 13 bits",
        "scorer.py",
        "acc = tl.dot(x, w.T, acc, input_precision=PRECISION)",
        'acc = tl.dot(x, w.T, acc, input_precision="tf32")',
        SCORER + "test_every_type[dtype0]",
    ),
    _wrong(
        "odd-hidden-size",
        "the last columns of an odd hidden size are read from the next row",
        "scorer.py",
        "inside = (k + inner < hidden_size)[None, :]",
        "inside = (k < hidden_size + 0 * inner)[None, :]",
        SCORER + "test_every_shape[63-1000]",
    ),
    _wrong(
        "small-softcap-cancels",
        "a softcap loses the digits of small logits",
        "scorer.py",
        "fall = expm1(-2.0 * tl.abs(y))",
        "fall = tl.exp(-2.0 * tl.abs(y)) - 1.0",
        SCORER + "test_a_wide_softcap_keeps_the_digits_of_small_logits",
    ),
)

COPIES = (
    _wrong(
        "index-off-by-one",
        "a live row goes to the place behind its own",
        "compaction.py",
        "+ tl.cumsum(flags, axis=0) - flags",
        "+ tl.cumsum(flags, axis=0)",
        COMPACTION + "test_live_rows_are_listed_in_order[0.3-5]",
    ),
    _wrong(
        "scan-restarts",
        "the scan forgets the blocks before its last step",
        "compaction.py",
        "running += tl.sum(here, axis=0)",
        "running = tl.sum(here, axis=0)",
        COMPACTION + "test_more_blocks_than_one_step_of_the_scan_takes",
    ),
    _wrong(
        "place-not-filled",
        "the first place without a row holds what memory held",
        "compaction.py",
        "place >= tl.load(count)",
        "place > tl.load(count)",
        COMPACTION + "test_live_rows_are_listed_in_order[0.3-5]",
    ),
    _wrong(
        "missing-row-read",
        "index -1 reads the row before the table",
        "compaction.py",
        "mask=inside & named, other=0.0",
        "mask=inside, other=0.0",
        COMPACTION + "test_gathered_and_scattered_rows_are_those_of_torch[7-dtype0]",
    ),
)

SCALING = (
    _wrong(
        "factor-of-one-writes",
        "a factor of 1 writes the gradient anew, and a NaN in it otherwise",
        "scale.py",
        "if by != 1.0:",
        "if by == by or by != by:",
        SCALE + "test_a_factor_of_one_touches_nothing[dtype2]",
    ),
    _wrong(
        "scaled-tail-short",
        "the last element of a gradient that fills no block is not scaled",
        "scale.py",
        "tl.store(gradient + last, values.to(gradient.dtype.element_ty), mask=last < size)",
        "tl.store(gradient + last, values.to(gradient.dtype.element_ty), mask=last < size - 1)",
        SCALE + "test_any_size_from_any_item_on[dtype1-31]",
    ),
    _wrong(
        "tail-scaled-by-every-program",
        "each program scales the last block's rest",
        "scale.py",
        "if program == programs - 1:",
        "if program <= programs - 1:",
        SCALE + "test_any_size_from_any_item_on[dtype1-9001]",
    ),
)

COMPILED = (
    _fault(
        AHEAD_OF_TIME,
        "scaled-head-misaligned",
        "the compiler cannot know where a gradient starts: it moves element by element",
        "wavalign_fast/ops/triton/scale.py",
        "for part in (items[:before], items[before:]):",
        "for part in (items[:0], items):",
        LAUNCHES + "test_what_comes_before_16_bytes_is_scaled_by_a_launch_of_its_own",
    ),
    _fault(
        AHEAD_OF_TIME,
        "spilled-tile",
        "a tile of 128 x 256 with a bias and a softcap: 132 registers spill on sm_90",
        "wavalign_fast/ops/triton/configs.py",
        'here == "sm_90" and plain',
        'here == "sm_90"',
        BUDGET + "[score/bf16+all-sm_90a]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "shared-memory-overrun",
        "six stages: more shared memory than a program may have on gfx942",
        "wavalign_fast/ops/triton/configs.py",
        "stages = 2 if here",
        "stages = 6 if here",
        BUDGET + "[score/bf16-gfx942]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "narrow-accesses",
        "the compiler no longer knows that rows start on 16 bytes",
        KERNELS + "rows.py",
        "    start = row * pitch_64 * 64\n",
        "    start = row * (pitch_64 * 63 + pitch_64)\n",
        BUDGET + "[hybrid_rows/fp32-bf16-sm_90a]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "no-tensor-cores",
        "operands are widened before the product: right, and without tensor cores",
        KERNELS + "scorer.py",
        "acc = tl.dot(x, w.T, acc, input_precision=PRECISION)",
        'acc = tl.dot(x.to(tl.float32), w.T.to(tl.float32), acc, input_precision="ieee")',
        BUDGET + "[score/bf16-odd-sm_80]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "does-not-compile",
        "a sum that starts in 32 bits and goes on in 64: the interpreter does not mind",
        KERNELS + "compaction.py",
        "running = tl.zeros((), tl.int64)",
        "running = tl.zeros((), tl.int32)",
        BUDGET + "[compaction/bf16-fp32-sm_80]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "compiles-for-every-batch",
        "the number of rows chooses the kernel: every batch may compile one",
        KERNELS + "scorer.py",
        'RUNTIME = ("rows", "vocab", "parts", "ignore_index")',
        'RUNTIME = ("vocab", "parts", "ignore_index")',
        LAUNCHES + "test_other_sizes_and_values_compile_nothing_again",
    ),
    _fault(
        AHEAD_OF_TIME,
        "grid-too-small",
        "rows beyond the last whole block are not scored",
        "wavalign_fast/ops/triton/scorer.py",
        "score_parts_kernel[(triton.cdiv(rows, config.rows), parts)]",
        "score_parts_kernel[(max(1, rows // config.rows), parts)]",
        LAUNCHES + "test_spans_of_the_vocabulary_fill_the_gpu[sm_80-128-65536]",
    ),
)

FAULTS: tuple[Fault, ...] = ROWS + SCORES + COPIES + SCALING + COMPILED
