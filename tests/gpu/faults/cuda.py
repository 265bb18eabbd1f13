"""Faults in the CUDA row kernels and in what they share with the host."""

from .planting import Fault

CUDA = "csrc/cuda/"
TOKEN_MATH = CUDA + "token_math.h"
ROWS, WRITING, HYBRID = CUDA + "row_stats.cuh", CUDA + "row_gradient.cuh", CUDA + "hybrid_rows.cu"
TESTS = "tests/gpu/conformance/cuda_on_cpu/test_"
HYBRID_TEST = "rows.py::test_hybrid_rows_are_those_of_the_definition"
GRADIENT_TEST = "rows.py::test_statistics_and_gradient_are_those_of_the_definition"
TOKENS_TEST = "token_math.py::test_gradient_by_the_log_prob[double-1e-14-absent0-clip1]"
LARGE_TEST = "rows.py::test_gradient_of_the_models_vocabulary[168055]"
ON_CPU = "CUDA on the CPU"
ADDRESSES = "CUDA on the CPU, address sanitizer"
RACES = "CUDA on the CPU, thread sanitizer"
ACCESSES = "CUDA on the CPU, accesses recorded"
NVCC = "nvcc, what it makes"


def cuda_fault(
    name: str, what: str, at: str, find: str, put: str, test: str, rung: str = ON_CPU
) -> Fault:
    return Fault(
        name=f"cuda-{name}",
        what=what,
        at=at,
        find=find,
        put=put,
        rung=rung,
        tests=(test if test.startswith("tests/") else TESTS + test,),
    )


SYNCHRONISATION = (
    cuda_fault(
        "barrier-removed",
        "the first warp merges the sums of the others before they are written",
        ROWS + "::block_merged",
        "__syncthreads();",
        "",
        HYBRID_TEST + "[1009-float32-bfloat16]",
    ),
    cuda_fault(
        "barrier-removed-race",
        "the same, as a race",
        ROWS + "::block_merged",
        "__syncthreads();",
        "",
        "sanitized.py::test_races_in_hybrid_rows[held-31-dtype1-out1]",
        RACES,
    ),
    cuda_fault(
        "cluster-barrier-removed",
        "each block of a cluster waits only for its own threads",
        HYBRID + "::hybrid_rows_kernel",
        "cluster_arrive(); cluster_wait();",
        "__syncthreads();",
        HYBRID_TEST + "[1009-float32-bfloat16]",
    ),
    cuda_fault(
        "cluster-barrier-removed-race",
        "the same, as a race",
        HYBRID + "::hybrid_rows_kernel",
        "cluster_arrive(); cluster_wait();",
        "__syncthreads();",
        "sanitized.py::test_races_in_hybrid_rows[cluster-257-dtype2-out2]",
        RACES,
    ),
    cuda_fault(
        "ends-early",
        "a block may end while another reads its shared memory",
        HYBRID + "::hybrid_rows_kernel",
        "cluster_arrive(); __syncthreads(); $*gradient cluster_wait();",
        "__syncthreads(); $*gradient",
        "sanitized.py::test_addresses_of_hybrid_rows[cluster-257-dtype2-out2]",
        ADDRESSES,
    ),
    cuda_fault(
        "summary-not-waited-for",
        "warps write the gradient before the row's statistics are written",
        HYBRID + "::hybrid_rows_kernel",
        "__syncthreads();",
        "",
        "sanitized.py::test_races_in_hybrid_rows[held-31-dtype1-out1]",
        RACES,
    ),
    cuda_fault(
        "in-place-barrier-removed",
        "gradients are written over logits that others have yet to read",
        WRITING + "::write_gradient",
        "if (overtakes_readers($step)) __syncthreads();",
        "",
        GRADIENT_TEST + "[1009-float32-bfloat16]",
    ),
    cuda_fault(
        "in-place-barrier-once",
        "only the first step waits for its readers, later ones overtake them",
        WRITING + "::overtakes_readers",
        "return (($step + 1) & ($step + 2)) == 0;",
        "return $step == 0;",
        LARGE_TEST,
    ),
    cuda_fault(
        "shuffle-mask",
        "the last lane is missing from the mask of all lanes",
        CUDA + "warps.cuh",
        "kAllLanes = $mask;",
        "kAllLanes = 0x7fffffffu;",
        "groups.py::test_advantages_are_the_released_ones_bit_for_bit[5-8-population]",
    ),
)
SUMS = (
    cuda_fault(
        "reduction-width",
        "a warp's sums cover only half of its lanes",
        ROWS + "::warp_merged",
        "$offset = kWarpLanes / 2;",
        "$offset = kWarpLanes / 4;",
        HYBRID_TEST + "[257-float32-bfloat16]",
    ),
    cuda_fault(
        "warp-dropped",
        "the last warp's sums are left out",
        ROWS + "::block_merged",
        "lane_of_warp() < $warps ?",
        "lane_of_warp() + 1 < $warps ?",
        HYBRID_TEST + "[1009-float32-bfloat16]",
    ),
    cuda_fault(
        "tail-dropped",
        "the last logit of a row that is no multiple of a vector is not summed",
        ROWS + "::thread_sums",
        "if ($last < $end) { $keep.item(",
        "if ($last + 1 < $end) { $keep.item(",
        HYBRID_TEST + "[257-float32-bfloat16]",
    ),
    cuda_fault(
        "tail-rounded-up",
        "the last vector of a row reaches beyond the vocabulary",
        ROWS + "::thread_sums",
        "($end - $begin) / kItems;",
        "($end - $begin + kItems - 1) / kItems;",
        HYBRID_TEST + "[257-float32-bfloat16]",
    ),
    cuda_fault(
        "absent-vector-counts",
        "columns beyond the end of a row count as logits of 0",
        ROWS + "::thread_sums",
        "$v < $vectors ? $values[$j] : -INFINITY",
        "$values[$j]",
        HYBRID_TEST + "[256-float32-bfloat16]",
    ),
    cuda_fault(
        "max-not-subtracted",
        "e^z instead of e^(z - top)",
        TOKEN_MATH + "::with_logits",
        "$z[$j] - $from;",
        "$z[$j] - 0 * $from;",
        HYBRID_TEST + "[31-float32-bfloat16]",
    ),
    cuda_fault(
        "lse-merged",
        "top and log_sum are added before they are subtracted",
        WRITING + "::write_gradient",
        "($values[$j] - $top) - $log_sum",
        "$values[$j] - ($top + $log_sum)",
        "rows.py::test_far_offsets_cost_no_digits",
    ),
    cuda_fault(
        "entropy-unwritten",
        "the entropy is never written",
        ROWS + "::write_summary",
        "$out.entropy[$row] = $value;",
        "",
        GRADIENT_TEST + "[31-float32-bfloat16]",
    ),
)
MEMORY = (
    cuda_fault(
        "int32-offset",
        "a row's offset wraps at 2^31 elements",
        ROWS + "::row_start",
        "$row * $pitch;",
        "static_cast<int>($row * $pitch);",
        "far.py::test_statistics_and_gradient",
    ),
    cuda_fault(
        "misaligned-slices",
        "the slices of a cluster's blocks start at any logit",
        HYBRID + "::slice_items",
        "return ($units + $cluster - 1) / $cluster * kUnit;",
        "return ($units * kUnit + $cluster - 1) / $cluster;",
        "sanitized.py::test_addresses_of_hybrid_rows[cluster-300-dtype4-out4]",
        ADDRESSES,
    ),
    cuda_fault(
        "shared-too-small",
        "a block asks for shared memory for fewer logits than it holds",
        HYBRID + "::plan_hybrid_rows",
        "slice_items($vocab, $cluster) *",
        "($vocab / $cluster) *",
        "sanitized.py::test_addresses_of_hybrid_rows[cluster-257-dtype2-out2]",
        ADDRESSES,
    ),
    cuda_fault(
        "zeros-by-every-block",
        "each block of a cluster writes the zeros of the whole dead row",
        HYBRID + "::hybrid_rows_kernel",
        "min($rank * $slice, $vocab), $*between write_zeros($result, $begin, $end); return;",
        "min($rank * $slice, $vocab), $*between write_zeros($result, 0, $vocab); return;",
        "sanitized.py::test_each_logit_is_read_and_written_once[cluster-257-dtype2-out2]",
        ACCESSES,
    ),
    cuda_fault(
        "row-of-the-block",
        "every block takes the row of its own number instead of its cluster's",
        HYBRID + "::hybrid_rows_kernel",
        "RowChunk& $chunk = $*between / static_cast<unsigned>($blocks);",
        "RowChunk& $chunk = $*between % static_cast<unsigned>($chunk.rows);",
        "sanitized.py::test_each_logit_is_read_and_written_once[cluster-257-dtype2-out2]",
        ACCESSES,
    ),
    cuda_fault(
        "tail-overwrites",
        "the last unit of a row writes whole vectors beyond the vocabulary",
        CUDA + "vector_access.cuh::store_items",
        "if ($j < $n) $p[$j] =",
        "$p[$j] =",
        GRADIENT_TEST + "[257-float32-float32]",
    ),
    cuda_fault(
        "bad-id-read",
        "the id V counts as part of the vocabulary",
        ROWS + "::target_of",
        "$id < $vocab;",
        "$id <= $vocab;",
        "sanitized.py::test_addresses_of_hybrid_rows[held-31-dtype1-out1]",
        ADDRESSES,
    ),
)
MEANING = (
    cuda_fault(
        "dead-rows-live",
        "padding is treated like an id outside the vocabulary",
        ROWS + "::target_of",
        "bool $dead = $id == $ignored;",
        "bool $dead = false;",
        GRADIENT_TEST + "[31-float32-bfloat16]",
    ),
    cuda_fault(
        "zero-gradient-of-nan",
        "a row without a gradient gets NaN where its logits are NaN",
        HYBRID + "::hybrid_rows_kernel",
        "if (!$target.valid) $*between if (any($grads))",
        "if (!$target.valid) $*between if ($target.valid)",
        HYBRID_TEST + "[31-float32-bfloat16]",
    ),
    cuda_fault(
        "clip-side",
        "the clipped side of the ratio has a gradient and the other side has none",
        TOKEN_MATH + "::surrogate_slope",
        "<= $clipped ?",
        ">= $clipped ?",
        TOKENS_TEST,
    ),
    cuda_fault(
        "nan-under-zero",
        "an old log-prob of NaN reaches rows whose policy coefficient is 0",
        TOKEN_MATH + "::token_gradient",
        "if ($policy > T(0)) $g -=",
        "$g -=",
        "token_math.py::test_gradient_by_the_log_prob[double-1e-14-absent0-None]",
    ),
    cuda_fault(
        "nan-clamped",
        "a clamp drops NaN",
        TOKEN_MATH + "::at_most",
        "return $value > $bound ? $bound : $value;",
        "return $value < $bound ? $value : $bound;",
        TOKENS_TEST,
    ),
    cuda_fault(
        "cancellation",
        "e^logp - 1 replaces expm1, which loses all digits at p near 1",
        TOKEN_MATH + "::target_gradient",
        "std::expm1($logp) -",
        "(std::exp($logp) - T(1)) -",
        "rows.py::test_near_certain_tokens_keep_their_digits",
    ),
    cuda_fault(
        "linear-tail-dropped",
        "ratios stop growing at 20 nats",
        TOKEN_MATH + "::surrogate_slope",
        "+ Linear<T>::slope *",
        "+ T(0) * Linear<T>::slope *",
        "token_math.py::test_ratios_grow_beyond_20_nats",
    ),
)
COMPILED = (
    cuda_fault(
        "registers-spilled",
        "four blocks must share a multiprocessor, which leaves each thread too few registers",
        ROWS,
        "kRowBlocks = $least;",
        "kRowBlocks = 4;",
        "tests/gpu/budgets/nvcc/test_budgets.py::test_no_kernel_has_a_stack[hybrid_rows-90a]",
        NVCC,
    ),
    cuda_fault(
        "narrow-loads",
        "16 bytes are loaded as four separate words",
        CUDA + "vector_access.cuh::load_vector",
        "$vector.bits = *reinterpret_cast<const uint4*>($p);",
        "const auto* words = reinterpret_cast<const unsigned*>($p);"
        " $vector.bits = {words[0], words[1], words[2], words[3]};",
        "tests/gpu/budgets/nvcc/test_budgets.py::test_logits_move_16_bytes_at_a_time[row_stats-90a]",
        NVCC,
    ),
    cuda_fault(
        "too-many-registers",
        "a block may use all registers of its multiprocessor",
        ROWS,
        "kRowBlocks = $least;",
        "kRowBlocks = 1;",
        "tests/gpu/budgets/nvcc/test_budgets.py::test_registers_are_as_written_down",
        NVCC,
    ),
)
FAULTS: tuple[Fault, ...] = SYNCHRONISATION + SUMS + MEMORY + MEANING + COMPILED
