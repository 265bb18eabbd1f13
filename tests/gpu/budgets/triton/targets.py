"""The target architectures, and the limits of each."""

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget


@dataclass(frozen=True, kw_only=True)
class Target:
    name: str
    gpu: GPUTarget
    shared_per_program: int
    """Bytes of shared memory that one launch may ask for."""
    shared_per_unit: int
    """Bytes that the programs on one multiprocessor (or compute unit) share."""
    threads_per_unit: int
    matrix: str
    """Regular expression of the instruction that multiplies matrices."""


def _nvidia(
    name: str, capability: int, shared: int, unit: int, threads: int, matrix: str
) -> Target:
    return Target(
        name=name,
        gpu=GPUTarget("cuda", capability, 32),
        shared_per_program=shared,
        shared_per_unit=unit,
        threads_per_unit=threads,
        matrix=matrix,
    )


# Shared memory: the CUDA programming guide's table of compute capabilities.
TARGETS = {
    target.name: target
    for target in (
        _nvidia("sm_80", 80, 166_912, 167_936, 2048, r"HMMA\.16816\.F32"),
        _nvidia("sm_90a", 90, 232_448, 233_472, 2048, r"HGMMA\.64x\d+x16\.F32"),
        _nvidia("sm_100a", 100, 232_448, 233_472, 2048, r"UTC\w*MMA"),
        _nvidia("sm_120", 120, 101_376, 102_400, 1536, r"HMMA\.16816\.F32"),
        Target(
            name="gfx942",
            gpu=GPUTarget("hip", "gfx942", 64),
            shared_per_program=65_536,
            shared_per_unit=65_536,
            threads_per_unit=2048,
            matrix=r"v_mfma_f32_\w+",
        ),
    )
}
