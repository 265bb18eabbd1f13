"""Faults in the loop over chunks of rows, and in what the host does around it."""

from .planting import Fault

RUNG = "The chunk loop and its host, on a pretended GPU"
LOOP = "tests/gpu/chunk_loop/"


def _fault(name: str, what: str, file: str, find: str, put: str, test: str) -> Fault:
    return Fault(
        name=f"chunks-{name}",
        what=what,
        at=f"wavalign_fast/ops/{file}",
        find=find,
        put=put,
        rung=RUNG,
        tests=(LOOP + test,),
    )


FAULTS: tuple[Fault, ...] = (
    _fault(
        "captured-once",
        "a graph is captured with tables on the CPU, and replays the first batch forever",
        "transfer.py::refuse_in_capture",
        "if not capturing($device): return",
        "return",
        "test_capture.py::test_a_table_on_the_cpu_is_refused[rewards]",
    ),
    _fault(
        "others-multiplied",
        "rows without a gradient take part in the gradient's GEMMs",
        "chunked/gradients.py::ChunkGradients",
        "slice($rows.start, min($rows.stop, $grad_rows))",
        "slice($rows.start, $rows.stop)",
        "test_grad_rows.py::test_a_step_multiplies_the_others_once[equal rewards-False]",
    ),
    _fault(
        "float16-unscaled",
        "gradients of logits below float16's smallest number are 0",
        "chunked/gradients.py::float16_power",
        "($power << 23).view(torch.float32)",
        "torch.ones_like($power, dtype=torch.float32)",
        "test_chunk_loop.py::test_float16[rows_of_every_size_keep_their_gradients-definition-float16]",
    ),
    _fault(
        "float16-rounded-before-its-factor",
        "a hybrid step's gradients are rounded to float16 before a gradient scaler's factor",
        "chunked/loop.py",
        "rounded=False)",
        "rounded=True)",
        "test_chunk_loop.py::test_float16[a_scaled_hybrid_step_keeps_its_gradients"
        "-definition-float16]",
    ),
    _fault(
        "head-summed-in-bf16",
        "the head's gradient is rounded after every chunk",
        "chunked/gradients.py::_add_weight",
        "torch.empty_like($weight, dtype=$wide)",
        "torch.empty_like($weight)",
        "test_products.py::test_many_chunks_are_summed_in_fp32",
    ),
    _fault(
        "states-summed-in-bf16",
        "the sum over the vocabulary, which a library may split, has bfloat16 results",
        "chunked/gradients.py::ChunkGradients",
        "if $dtype != $wide:",
        "if $dtype is None:",
        "test_products.py::test_every_sum_is_made_in_fp32",
    ),
    _fault(
        "tall-untried",
        "a tall GEMM is assumed to have the bits of low ones",
        "chunked/products.py",
        "= _tried($*arguments])",
        "= True",
        "test_products.py::test_low_products_where_a_taller_one_rounds_otherwise",
    ),
    _fault(
        "copied-one-by-one",
        "every table is copied on its own",
        "transfer.py",
        "len($away) < 2 or",
        "len($away) < 99 or",
        "test_launches.py::test_a_step_with_tables_on_the_cpu[plain]",
    ),
)
