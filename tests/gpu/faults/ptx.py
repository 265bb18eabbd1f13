"""Faults that only the compiled code shows: in PTX written for the device, whose twin on the CPU is
right; between the host's launch and the kernel; and in what a compiler emits."""

from .planting import Fault

RUNG = "PTX, emulated"
TESTS = "tests/gpu/conformance/ptx/test_"
INSTRUCTIONS = "csrc/cuda/ptx.cuh"
CLUSTER = "rows.py::test_ways_of_the_cuda_kernel[cluster-together]"
STREAMED = "rows.py::test_ways_of_the_cuda_kernel[streamed-together]"
COMPACTION = "tables.py::test_cuda_compaction_in_any_order_of_blocks"
SCORES = "scorer.py::test_scores"
RAGGED = "a ragged end of the hidden size"


def _fault(name: str, what: str, at: str, find: str, put: str, test: str) -> Fault:
    return Fault(
        name=f"ptx-{name}",
        what=what,
        at=at,
        find=find,
        put=put,
        rung=RUNG,
        tests=(TESTS + test,),
    )


def _mutation(name: str, what: str, test: str) -> Fault:
    """A change to the compiler's output, planted by the switch of the table that holds it."""
    return _fault(
        name,
        what,
        "tests/gpu/conformance/ptx/mutations.py",
        "PLANTED: $*type = None",
        f'PLANTED: $*type = "{name}"',
        test,
    )


FAULTS = (
    _fault(
        "cluster-wait-dropped",
        "blocks of a cluster read each other's sums without waiting for them",
        INSTRUCTIONS + "::cluster_wait",
        '"barrier.cluster.wait.acquire;"',
        '""',
        CLUSTER,
    ),
    _fault(
        "cluster-arrival-dropped",
        "blocks of a cluster wait for a barrier at which none arrives",
        INSTRUCTIONS + "::cluster_arrive",
        '"barrier.cluster.arrive.release;"',
        '""',
        CLUSTER,
    ),
    _fault(
        "same-block-mapped",
        "every block of a cluster merges the sums of the first one only",
        INSTRUCTIONS + "::shared_of",
        '"r"($rank)',
        '"r"(0)',
        CLUSTER,
    ),
    _fault(
        "cluster-rank-wrong",
        "a block of a cluster takes the number of blocks for its rank",
        INSTRUCTIONS + "::cluster_rank",
        "%%cluster_ctarank;",
        "%%cluster_nctarank;",
        CLUSTER,
    ),
    _fault(
        "cluster-of-two-without-clusters",
        "without clusters, a block acts as one of two",
        INSTRUCTIONS + "::cluster_size",
        "return 1;",
        "return 2;",
        STREAMED,
    ),
    _fault(
        "word-of-another-tile",
        "compaction reads the word next to the one that it waits for",
        INSTRUCTIONS + "::load_relaxed",
        "[%1]",
        "[%1 + 8]",
        COMPACTION,
    ),
    _fault(
        "half-a-word-published",
        "compaction drops the flag bits of a count, which is right in some orders of the blocks",
        INSTRUCTIONS + "::store_relaxed",
        '"st.relaxed.gpu.global.u64 [%0], %1;" :: "l"($p), "l"($value)',
        '"st.relaxed.gpu.global.u32 [%0], %1;" ::"l"($p), "r"((uint32_t)$value)',
        COMPACTION,
    ),
    _fault(
        "too-little-shared-memory",
        "the launch asks for half of the shared memory that the kernel uses",
        "csrc/cuda/launch.cuh::launch",
        "dynamicSmemBytes = static_cast<size_t>($bytes);",
        "dynamicSmemBytes = static_cast<size_t>($bytes / 2);",
        CLUSTER,
    ),
    _fault(
        "misaligned-slices",
        "the slices that blocks of a cluster take do not start on 16 bytes",
        "csrc/cuda/hybrid_rows.cu::slice_items",
        "return ($units + $cluster - 1) / $cluster * kUnit;",
        "return ($units + $cluster - 1) / $cluster * kUnit + 2 * ($cluster > 1);",
        CLUSTER,
    ),
    _fault(
        "ids-of-32-bits",
        "the scorer's offset into a large weight wraps",
        "wavalign_fast/ops/triton/kernels/scorer.py::tile_product",
        "tl.cast($first_id, tl.int64) *",
        "$first_id *",
        "far.py::test_the_last_ids_of_a_head_on_triton[sm_80]",
    ),
    _fault(
        "scaled-places-of-32-bits",
        "the offset into a large gradient wraps at 2^31 elements",
        "wavalign_fast/ops/triton/kernels/scale.py::scale_kernel",
        "for $block in $*between tl.cast($block, tl.int64)",
        "for $block in $*between tl.cast($block, tl.int32)",
        "far.py::test_the_end_of_a_gradient_on_triton[sm_80]",
    ),
    _fault(
        "scaled-vectors-of-32-bits",
        "the offset of a vector in a large gradient is computed in 32 bits",
        "csrc/cuda/scale.cu::scale_kernel",
        "store_vector($body + $v * kItems,",
        "store_vector($body + static_cast<int>($v * kItems),",
        "far.py::test_the_end_of_a_gradient_on_cuda",
    ),
    _mutation(
        "copy-wait-weakened",
        "a tile is multiplied while its copy may still be in flight",
        f"{SCORES}[{RAGGED}-sm_80]",
    ),
    _mutation(
        "product-wait-dropped",
        "sums are used while tensor cores may still add to them",
        f"{SCORES}[{RAGGED}-sm_90a]",
    ),
    _mutation(
        "product-wait-weakened",
        "a tile is overwritten while tensor cores may still read it",
        f"{SCORES}[two spans and a ragged vocabulary-sm_90a]",
    ),
    _mutation(
        "barrier-after-copies-removed",
        "a warp multiplies a tile that another warp has copied, without a barrier in between",
        f"{SCORES}[{RAGGED}-sm_80]",
    ),
    _mutation(
        "copy-mask-dropped",
        "the last copy of a row reads past its end",
        f"{SCORES}[{RAGGED}-sm_80]",
    ),
    _mutation(
        "vector-off-by-four-bytes",
        "a 16-byte load does not start on 16 bytes",
        "rows.py::test_statistics_then_gradient[1031-triton-sm_80]",
    ),
    _mutation(
        "initial-value-removed",
        "lanes beyond the vocabulary use an uninitialised register",
        "rows.py::test_statistics_then_gradient[1031-triton-sm_90a]",
    ),
    _mutation(
        "reduction-barrier-removed",
        "a warp reads the sums of the others before they are written",
        "rows.py::test_hybrid_rows[1031-triton-sm_90a]",
    ),
)
