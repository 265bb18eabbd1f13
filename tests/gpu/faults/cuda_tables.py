"""Faults in the CUDA kernels around the rows: groups, compaction, copies, scaled gradients."""

from .cuda import ACCESSES, ADDRESSES, CUDA, cuda_fault
from .planting import Fault

COMPACTION, COPIES = CUDA + "compact_rows.cu", CUDA + "gather_scatter.cu"
GROUPS, SCALE = CUDA + "group_statistics.cu", CUDA + "scale.cu"
COMPACTION_TEST = "copies.py::test_live_rows_come_first_and_in_order"
SCALE_TEST = "scale.py::test_any_size_from_any_item_on"

TABLES = (
    cuda_fault(
        "gather-reads-beyond",
        "an index one past the source counts as a row",
        COPIES + "::gather_rows_kernel",
        "&& $from < $size;",
        "&& $from <= $size;",
        "copies.py::test_gather[128-dtype0]",
    ),
    cuda_fault(
        "scatter-drops-the-rest",
        "rows of any width are copied in whole vectors",
        COPIES + "::scatter_rows",
        "$width % kUnit == 0 &&",
        "",
        "copies.py::test_scatter[torch.float32-torch.float32-100]",
    ),
    cuda_fault(
        "missing-rewards-count",
        "missing rewards count in the means",
        GROUPS + "::group_of",
        "int64_t $size) $*between fmax($scored, 1.0);",
        "int64_t $size) $*between fmax(static_cast<double>($size), 1.0);",
        "groups.py::test_advantages_are_the_released_ones_bit_for_bit[5-8-population]",
    ),
    cuda_fault(
        "tiles-by-number",
        "tiles are assigned by block number: a block may wait for one that cannot run yet",
        COMPACTION + "::compact_rows_kernel",
        "atomicAdd($taken, 1ull)",
        "blockIdx.x + 0 * *$taken",
        "copies.py::test_tiles_find_their_place_in_any_order_of_blocks",
    ),
    cuda_fault(
        "look-back-too-far",
        "the nearest total is added without the counts of the tiles in between",
        COMPACTION + "::live_before_tile",
        "lane_of_warp() <= $nearest ?",
        "lane_of_warp() == $nearest ?",
        "copies.py::test_tiles_find_their_place_in_any_order_of_blocks",
    ),
    cuda_fault(
        "tile-not-waited-for",
        "a tile is written before its offset is known",
        COMPACTION + "::compact_rows_kernel",
        "__syncthreads(); write_tile(",
        "write_tile(",
        COMPACTION_TEST + "[0.5-4097]",
    ),
    cuda_fault(
        "rest-unmarked",
        "the place after the last live row is not marked",
        COMPACTION + "::write_tile",
        "$size - 1 - ($dead_before + $j);",
        "$size - ($dead_before + $j);",
        COMPACTION_TEST + "[0.5-100]",
    ),
)
SCALING = (
    cuda_fault(
        "factor-of-one-writes",
        "a factor of 1 reads and writes the whole gradient",
        SCALE + "::scale_kernel",
        "if ($factor == 1.f) return;",
        "",
        "scale.py::test_a_factor_of_one_touches_nothing[torch.bfloat16]",
        ACCESSES,
    ),
    cuda_fault(
        "scaled-tail-short",
        "the last element of a gradient that fills no vector is not scaled",
        SCALE + "::scale_kernel",
        "if ($item < $size) $items[$item]",
        "if ($item + 1 < $size) $items[$item]",
        SCALE_TEST + "[torch.bfloat16-31]",
    ),
    cuda_fault(
        "scaled-tail-beyond",
        "the element after the gradient is scaled",
        SCALE + "::scale_kernel",
        "if ($item < $size) $items[$item]",
        "if ($item <= $size) $items[$item]",
        SCALE_TEST + "[torch.bfloat16-31]",
        ADDRESSES,
    ),
    cuda_fault(
        "scaled-head-misaligned",
        "vectors start at the gradient's first element, whatever its alignment",
        SCALE + "::launch_scale",
        "std::min($size, $before));",
        "std::min($size, 0 * $before));",
        SCALE_TEST + "[torch.bfloat16-9001]",
        ADDRESSES,
    ),
    cuda_fault(
        "scaled-in-turns-of-one",
        "threads of the largest grid take a batch of vectors but advance by one vector",
        SCALE + "::scale_kernel",
        "$first += kBatch * $threads",
        "$first += $threads",
        "scale.py::test_more_than_one_turn_of_the_largest_grid",
    ),
    cuda_fault(
        "scaled-in-the-gradients-type",
        "the factor is rounded to the gradient's type",
        SCALE + "::product",
        "widened($item) * $factor",
        "widened($item) * widened(narrowed<T>($factor))",
        SCALE_TEST + "[torch.bfloat16-31]",
    ),
)
FAULTS: tuple[Fault, ...] = TABLES + SCALING
