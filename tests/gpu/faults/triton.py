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


def _fault(rung: str, name: str, what: str, at: str, find: str, put: str, test: str) -> Fault:
    return Fault(
        name=f"triton-{name}",
        what=what,
        at=at,
        find=find,
        put=put,
        rung=rung,
        tests=(test,),
    )


def _wrong(name: str, what: str, file: str, find: str, put: str, test: str) -> Fault:
    return _fault(INTERPRETER, name, what, KERNELS + file, find, put, test)


ROWS = (
    _wrong(
        "mask-dropped",
        "the row's last block is written without its mask",
        "row_ops.py::write_gradient",
        "$d.to($type), mask=$columns < $vocab)",
        "$d.to($type))",
        GRADIENTS + "test_every_length_of_a_row[31]",
    ),
    _wrong(
        "tail-off-by-one",
        "the row's last block reads one column too many",
        "row_ops.py::read_logits",
        "$inside = $columns < $vocab",
        "$inside = $columns <= $vocab",
        STATS + "test_every_length_of_a_row[31]",
    ),
    _wrong(
        "wrong-other",
        "columns beyond the vocabulary count as logits of 0",
        "row_ops.py::read_logits",
        'other=float("-inf")',
        "other=0.0",
        STATS + "test_every_length_of_a_row[257]",
    ),
    _wrong(
        "int32-offset",
        "row offsets are computed in 32 bits",
        "row_ops.py::row_starts",
        "$row * $pitch * 64",
        "$row.to(tl.int32) * $pitch * 64",
        GRADIENTS + "test_rows_beyond_2_to_the_31_elements",
    ),
    _wrong(
        "barrier-in-first-block-only",
        "only the first block of an in-place gradient waits for all reads",
        "row_ops.py::write_gradient",
        "$block & ($block - 1) == 0:",
        "$block == 0:",
        GRADIENTS + "test_every_length_of_a_row[10241]",
    ),
    _wrong(
        "barrier-missing-in-tail",
        "a row of one block is overwritten while it is read",
        "row_ops.py::write_gradient",
        "if NARROW: tl.debug_barrier()",
        "",
        GRADIENTS + "test_every_length_of_a_row[31]",
    ),
    _wrong(
        "barrier-missing-after-statistics",
        "a row is overwritten while its statistics are taken",
        "row_ops.py::hybrid_rows_kernel",
        "tl.debug_barrier()",
        "",
        GRADIENTS + "test_clipped_rows_and_rows_of_weight_zero_are_zero",
    ),
    _wrong(
        "sum-not-rescaled",
        "the running sum keeps its old maximum",
        "softmax.py::online_step",
        "$total = $kept * $total + $e",
        "$total = $total + $e",
        STATS + "test_every_length_of_a_row[4003]",
    ),
    _wrong(
        "entropy-not-rescaled",
        "the entropy's running sum keeps its old maximum",
        "softmax.py::online_step",
        "$kept * ($weighted + $fall * $total) +",
        "$kept * $weighted +",
        STATS + "test_every_length_of_a_row[4003]",
    ),
    _wrong(
        "nan-lost",
        "the upper bound of the log-prob turns NaN into 0",
        "softmax.py::row_summary",
        "tl.where($logp > 0.0, 0.0, $logp)",
        "tl.minimum($logp, 0.0)",
        STATS + "test_a_row_of_nan_is_nan_and_alone",
    ),
    _wrong(
        "floor-is-a-logit",
        "a row of banned ids has a uniform distribution",
        "softmax.py::row_summary",
        'tl.where($top > FLOOR, $total, float("nan"))',
        "$total + 0.0",
        STATS + "test_a_row_of_nan_is_nan_and_alone",
    ),
    _wrong(
        "target-cancels",
        "the target's own gradient is the difference of two numbers near 1",
        "row_ops.py::target_gradient",
        "$by_lse * $p - $g * expm1($logp)",
        "($by_lse - $g) * $p + $g",
        GRADIENTS + "test_the_targets_own_entry_keeps_its_digits_where_its_probability_is_near_1",
    ),
    _wrong(
        "zero-times-infinity",
        "the gradient of an entropy is NaN at a banned id",
        "row_ops.py::block_gradient",
        "tl.where($p > 0.0, $log_p + $entropy, 0.0)",
        "($log_p + $entropy)",
        GRADIENTS + "test_every_set_of_derivatives[e]",
    ),
    _wrong(
        "clip-ignores-the-sign",
        "a negative advantage is clipped like a positive one",
        "token_math.py::surrogate_slope",
        "$ratio * $advantage <= $clipped * $advantage",
        "$ratio <= $clipped",
        GRADIENTS + "test_each_sign_is_clipped_on_its_side",
    ),
    _wrong(
        "unused-column-poisons",
        "NaN in the old log-prob of an anchor row reaches its gradient",
        "token_math.py::token_gradient",
        "tl.where($policy > 0.0, -$policy * $by_logp, 0.0)",
        "-$policy * $by_logp",
        GRADIENTS + "test_hybrid_rows_with_old_and_reference_log_probs[None]",
    ),
)

SCORES = (
    _wrong(
        "tail-counted-twice",
        "ids beyond the vocabulary count as its last id",
        "scorer.py::tile_logits",
        'tl.where($inside[None, :], $*z, float("-inf"))',
        "$*z",
        SCORER + "test_every_shape[80-31]",
    ),
    _wrong(
        "nan-lost-in-a-tile",
        "the running maximum treats a NaN logit like a banned id",
        "scorer.py::online_tile",
        ", propagate_nan=tl.PropagateNan.ALL)",
        ")",
        SCORER + "test_a_row_of_nan_is_nan_and_alone",
    ),
    _wrong(
        "programs-race",
        "every span writes the logit of every target",
        "scorer.py::store_target_logits",
        "($target >= $first) $*between axis=1), mask=$here)",
        "($target >= $first) $*between axis=1), mask=$target >= 0)",
        SCORER + "test_every_shape[64-1025]",
    ),
    _wrong(
        "unwritten-output",
        "a span's sum for the entropy stays in registers",
        "scorer.py::score_spans_kernel",
        "tl.store(weighteds + $place, $weighted, mask=$row < $rows)",
        "",
        SCORER + "test_every_shape[64-2]",
    ),
    _wrong(
        "merge-keeps-old-maximum",
        "spans are merged relative to the first span's maximum",
        "scorer.py::score_merge_kernel",
        "rebase($top, $total, $weighted, $new_top)",
        "$total, $weighted",
        SCORER + "test_more_spans_than_one_step_of_the_merge_takes",
    ),
    _wrong(
        "merge-misses-last-span",
        "the last spans of a large vocabulary are not merged",
        "scorer.py::score_merge_kernel",
        "tl.range(0, $spans, SPANS)",
        "tl.range(0, $spans - SPANS + 1, SPANS)",
        SCORER + "test_every_shape[64-1025]",
    ),
    _wrong(
        "tf32",
        "products of fp32 operands lose 13 bits",
        "scorer.py::tile_product",
        "input_precision=PRECISION",
        'input_precision="tf32"',
        SCORER + "test_every_type[dtype0]",
    ),
    _wrong(
        "odd-hidden-size",
        "the last columns of an odd hidden size are read from the next row",
        "scorer.py::tile_product",
        "($k + $inner < $size)[None, :]",
        "($k < $size + 0 * $inner)[None, :]",
        SCORER + "test_every_shape[63-1000]",
    ),
    _wrong(
        "small-softcap-cancels",
        "a softcap loses the digits of small logits",
        "scorer.py::capped",
        "expm1(-2.0 * tl.abs($y))",
        "tl.exp(-2.0 * tl.abs($y)) - 1.0",
        SCORER + "test_a_wide_softcap_keeps_the_digits_of_small_logits",
    ),
)

COPIES = (
    _wrong(
        "index-off-by-one",
        "a live row is written one place too late",
        "compaction.py::write_index_kernel",
        "tl.cumsum($flags, axis=0) - $flags",
        "tl.cumsum($flags, axis=0)",
        COMPACTION + "test_live_rows_are_listed_in_order[0.3-5]",
    ),
    _wrong(
        "scan-restarts",
        "the scan forgets the blocks before its last step",
        "compaction.py::scan_counts_kernel",
        "$running += tl.sum($here, axis=0)",
        "$running = tl.sum($here, axis=0)",
        COMPACTION + "test_more_blocks_than_one_step_of_the_scan_takes",
    ),
    _wrong(
        "place-not-filled",
        "the first place without a row is left uninitialised",
        "compaction.py::write_index_kernel",
        "$place >= tl.load($count)",
        "$place > tl.load($count)",
        COMPACTION + "test_live_rows_are_listed_in_order[0.3-5]",
    ),
    _wrong(
        "missing-row-read",
        "index -1 reads the row before the table",
        "compaction.py::gather_rows_kernel",
        "mask=$inside & $named",
        "mask=$inside",
        COMPACTION + "test_gathered_and_scattered_rows_are_those_of_torch[7-dtype0]",
    ),
)

SCALING = (
    _wrong(
        "factor-of-one-writes",
        "a factor of 1 rewrites the gradient, and changes the bits of a NaN",
        "scale.py::scale_kernel",
        "$by != 1.0",
        "$by == $by or $by != $by",
        SCALE + "test_a_factor_of_one_touches_nothing[dtype2]",
    ),
    _wrong(
        "scaled-tail-short",
        "the last element of a gradient that fills no block is not scaled",
        "scale.py::scale_kernel",
        "mask=$last < $size)",
        "mask=$last < $size - 1)",
        SCALE + "test_any_size_from_any_item_on[dtype1-31]",
    ),
    _wrong(
        "tail-scaled-by-every-program",
        "every program scales the remainder of the last block",
        "scale.py::scale_kernel",
        "if $program == $programs - 1:",
        "if $program <= $programs - 1:",
        SCALE + "test_any_size_from_any_item_on[dtype1-9001]",
    ),
)

COMPILED = (
    _fault(
        AHEAD_OF_TIME,
        "scaled-head-misaligned",
        "the compiler cannot know where a gradient starts: it moves element by element",
        "wavalign_fast/ops/triton/scale.py::scale_",
        "in ($items[:$before], $items[$before:]):",
        "in ($items[:0], $items):",
        LAUNCHES + "test_what_comes_before_16_bytes_is_scaled_by_a_launch_of_its_own",
    ),
    _fault(
        AHEAD_OF_TIME,
        "spilled-tile",
        "a tile of 128 x 256 is used with a bias and a softcap, where 132 registers spill on sm_90",
        "wavalign_fast/ops/triton/configs.py::scorer_config",
        '$here == "sm_90" and $plain',
        '$here == "sm_90"',
        BUDGET + "[score/bf16+all-sm_90a]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "shared-memory-overrun",
        "six stages need more shared memory than a program may have on gfx942",
        "wavalign_fast/ops/triton/configs.py::scorer_config",
        "$stages = 2 if",
        "$stages = 6 if",
        BUDGET + "[score/bf16-gfx942]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "narrow-accesses",
        "the compiler no longer knows that rows start on 16 bytes",
        KERNELS + "row_ops.py::row_starts",
        "$row * $pitch * 64",
        "$row * ($pitch * 63 + $pitch)",
        BUDGET + "[hybrid_rows/fp32-bf16-sm_90a]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "no-tensor-cores",
        "operands are widened before the product, which is right but uses no tensor cores",
        KERNELS + "scorer.py::tile_product",
        "tl.dot($x, $w.T, $acc, input_precision=PRECISION)",
        'tl.dot($x.to(tl.float32), $w.T.to(tl.float32), $acc, input_precision="ieee")',
        BUDGET + "[score/bf16-odd-sm_80]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "does-not-compile",
        "a sum starts in 32 bits and continues in 64, which only the interpreter accepts",
        KERNELS + "compaction.py::scan_counts_kernel",
        "tl.zeros((), tl.int64)",
        "tl.zeros((), tl.int32)",
        BUDGET + "[compaction/bf16-fp32-sm_80]",
    ),
    _fault(
        AHEAD_OF_TIME,
        "compiles-for-every-batch",
        "the number of rows specialises the kernel: any batch may compile a new one",
        KERNELS + "scorer.py",
        'RUNTIME = ("rows",',
        "RUNTIME = (",
        LAUNCHES + "test_other_sizes_and_values_compile_nothing_again",
    ),
    _fault(
        AHEAD_OF_TIME,
        "grid-too-small",
        "rows beyond the last whole block are not scored",
        "wavalign_fast/ops/triton/scorer.py::_score_spans",
        "score_spans_kernel[(triton.cdiv($rows, $block), $spans)]",
        "score_spans_kernel[(max(1, $rows // $block), $spans)]",
        LAUNCHES + "test_spans_of_the_vocabulary_fill_the_gpu[sm_80-128-65536]",
    ),
)

FAULTS: tuple[Fault, ...] = ROWS + SCORES + COPIES + SCALING + COMPILED
