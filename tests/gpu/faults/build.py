"""Faults in the build and in torch's view of the CUDA kernels."""

from .planting import Fault

BINDINGS = "csrc/cuda/bindings.cpp"
RUNG = "extension"
FOLDER = "tests/gpu/extension"
BUILD_TESTS = "tests/test_cuda_build.py"

BUILD_FAULTS = (
    Fault(
        name="undeclared-write",
        what="a schema does not say that the logits are written: compiled graphs reorder around it",
        path=BINDINGS,
        before='"hybrid_rows_(Tensor(a!) logits, ',
        after='"hybrid_rows_(Tensor logits, ',
        rung=RUNG,
        tests=(f"{FOLDER}/test_ops.py::test_opcheck",),
    ),
    Fault(
        name="default-stream",
        what="kernels run on the default stream instead of the current one",
        path=BINDINGS,
        before="function(params, stream_.nativeHandle())",
        after="function(params, nullptr)",
        rung=RUNG,
        tests=(f"{FOLDER}/test_bindings.py",),
    ),
    Fault(
        name="stream-lost-on-the-way",
        what="a launch function forgets the stream that it was given",
        path="csrc/cuda/launching.cuh",
        before="config.stream = static_cast<cudaStream_t>(stream);",
        after="(void)stream;",
        rung=RUNG,
        tests=(f"{FOLDER}/test_ops.py",),
    ),
    Fault(
        name="first-device",
        what="memory and launches go to the first GPU whichever holds the tensors",
        path=BINDINGS,
        before="guard_(index_of_device(tensor))",
        after="guard_(0)",
        rung=RUNG,
        tests=(f"{FOLDER}/test_bindings.py",),
    ),
    Fault(
        name="refused-launch-unnoticed",
        what="the status of a launch is dropped: results are memory that nobody wrote",
        path=BINDINGS,
        before="check(status == 0, ",
        after="check(true, ",
        rung=RUNG,
        tests=(f"{FOLDER}/test_bindings.py",),
    ),
    Fault(
        name="length-unchecked",
        what="vectors shorter than the chunk are accepted and read past their end",
        path="csrc/cuda/checks.h",
        before="tensor.dim() == 1 && tensor.size(0) == size &&",
        after="tensor.dim() == 1 &&",
        rung=RUNG,
        tests=(f"{FOLDER}/test_bindings.py",),
    ),
    Fault(
        name="alignment-unchecked",
        what="logits that start between two vectors of 16 bytes reach the kernels",
        path="csrc/cuda/checks.h",
        before="check(address % 16 == 0, ",
        after="check(address % 4 == 0, ",
        rung=RUNG,
        tests=(f"{FOLDER}/test_bindings.py",),
    ),
    Fault(
        name="crossed-derivatives",
        what="the derivative by lse stands in the place of the one by entropy",
        path=BINDINGS,
        before='params.grad_entropy = floats("grad_entropy", grad_entropy, rows, logits);',
        after='params.grad_entropy = floats("grad_entropy", grad_lse, rows, logits);',
        rung=RUNG,
        tests=(f"{FOLDER}/test_ops.py",),
    ),
    Fault(
        name="fake-of-the-wrong-shape",
        what="the fake of compact_rows gives as many indices as there are rows",
        path="wavalign_fast/ops/cuda.py",
        before="for n in (capacity, 1)",
        after="for n in (live.shape[0], 1)",
        rung=RUNG,
        tests=(f"{FOLDER}/test_ops.py::test_opcheck",),
    ),
    Fault(
        name="forced-but-left-out",
        what="WAVALIGN_FORCE_CUDA is not heeded: a wheel comes out without what it must contain",
        path="csrc/build_cuda.py",
        before='if switched_on("WAVALIGN_FORCE_CUDA"):',
        after="if False:",
        rung=RUNG,
        tests=(f"{BUILD_TESTS}::test_forced_kernels_are_never_left_out",),
    ),
    Fault(
        name="no-ptx",
        what="the build has no PTX, so later GPUs than those it names find no code",
        path="csrc/build_cuda.py",
        before='kinds = f"sm_{self.code},compute_{self.code}" if self.ptx else f"sm_{self.code}"',
        after='kinds = f"sm_{self.code}"',
        rung=RUNG,
        tests=(f"{BUILD_TESTS}::test_kernels_are_built_where_there_is_nvcc",),
    ),
    Fault(
        name="kernels-of-an-earlier-build",
        what="a build without nvcc packs the kernels that an earlier one left behind",
        path="setup.py",
        before="(folder / Path(built).name).unlink(missing_ok=True)",
        after="(folder / Path(built).name).exists()",
        rung=RUNG,
        tests=(f"{BUILD_TESTS}::test_kernels_are_built_where_there_is_nvcc",),
    ),
)
