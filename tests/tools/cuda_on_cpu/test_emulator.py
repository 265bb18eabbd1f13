"""The emulator itself: it must compute, and it must refuse what CUDA does not define.

``wrong_kernels.cu`` has a kernel for each fault; a sum over two warps that is right in mode 0.
"""

from ctypes import c_int32, c_int64

import pytest
import torch

from tools.cuda_on_cpu.cases import EmulatorError
from tools.cuda_on_cpu.launcher import Launcher, LaunchError, pointers, structure

BLOCKS = 4
RIGHT, NO_BARRIER, DIVERGENT_BARRIER, BARRIER_AFTER_EXIT, LANE_EXITS, MASK_WITHOUT_ME = range(6)
DIVERGENT_SHUFFLE, UNWRITTEN_SHARED, INDEX_OVERRUN, BLOCKS_RACE, CLUSTER_RIGHT = range(6, 11)
NO_CLUSTER_WAIT, ENDS_EARLY, ARRIVES_ONLY, MISALIGNED, READS_BEYOND, SPINS = range(11, 17)
TOO_MANY_THREADS, TOO_MUCH_SHARED = range(17, 19)
SEEDS = range(6)
WrongParams = structure("WrongParams", **pointers("values", "out"), blocks=c_int64, mode=c_int32)
VALUES = torch.arange(BLOCKS * 64, dtype=torch.float32).view(BLOCKS, 64)


def run(kernels: Launcher, mode: int) -> torch.Tensor:
    params = WrongParams(blocks=BLOCKS, mode=mode)
    buffers = {"values": VALUES, "out": torch.full((64,), -1.0)}
    return kernels.launch("wrong_kernels", "wrong", params, buffers).buffers["out"]


def message(kernels: Launcher, mode: int) -> str:
    with pytest.raises(EmulatorError) as error:
        run(kernels, mode)
    return str(error.value)


@pytest.mark.parametrize("variant", ["plain", "addresses", "races", "accesses"])
def test_right_kernels_run_in_every_variant_and_order(kernels: Launcher, variant: str) -> None:
    for seed in SEEDS if variant == "plain" else (0, 1):
        device = kernels.on(variant, seed=seed)
        assert torch.equal(run(device, RIGHT)[:BLOCKS], VALUES.sum(1))
        assert run(device, CLUSTER_RIGHT)[:BLOCKS].tolist() == [64, 0, 192, 128]


def test_a_missing_barrier_gives_wrong_values_and_is_a_race(kernels: Launcher) -> None:
    right = run(kernels, RIGHT)
    wrong = [not torch.equal(run(kernels.on(seed=seed), NO_BARRIER), right) for seed in SEEDS]
    assert all(wrong)
    assert "data race" in message(kernels.on("races"), NO_BARRIER)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (DIVERGENT_BARRIER, "wait at different barriers"),
        (BARRIER_AFTER_EXIT, "reached by 40 of 64 threads"),
        (LANE_EXITS, "lane 8, which has exited"),
        (MASK_WITHOUT_ME, "mask does not name"),
        (DIVERGENT_SHUFFLE, "deadlock"),
        (SPINS, "no progress"),
        (ARRIVES_ONLY, "between the two halves"),
    ],
)
def test_undefined_ways_to_wait_are_refused(kernels: Launcher, mode: int, said: str) -> None:
    for seed in (0, 1):
        assert said in message(kernels.on(seed=seed), mode)


def test_shared_memory_begins_as_nan(kernels: Launcher) -> None:
    assert run(kernels, UNWRITTEN_SHARED)[:BLOCKS].isnan().all()


def test_each_block_has_shared_memory_of_its_own_to_the_byte(kernels: Launcher) -> None:
    assert "heap-buffer-overflow" in message(kernels.on("addresses"), INDEX_OVERRUN)


def test_blocks_that_write_one_word_are_a_race(kernels: Launcher) -> None:
    assert "writes byte 0 of out as cluster" in message(kernels.on("accesses"), BLOCKS_RACE)
    assert "data race" in message(kernels.on("races"), BLOCKS_RACE)


def test_another_blocks_shared_memory_must_be_waited_for(kernels: Launcher) -> None:
    read = [run(kernels.on(seed=seed), NO_CLUSTER_WAIT)[:BLOCKS] for seed in SEEDS]
    assert any(values.isnan().any() for values in read)
    assert "data race" in message(kernels.on("races"), NO_CLUSTER_WAIT)


def test_shared_memory_ends_with_its_block(kernels: Launcher) -> None:
    said = []
    for seed in SEEDS:
        try:
            run(kernels.on(seed=seed), ENDS_EARLY)
        except EmulatorError as error:
            said.append(str(error))
    assert any("which has ended" in text for text in said)


def test_16_bytes_lie_on_16_bytes(kernels: Launcher) -> None:
    assert "misaligned address" in message(kernels.on("addresses"), MISALIGNED)
    assert "misaligned access of 16 bytes" in message(kernels.on("accesses"), MISALIGNED)


def test_reading_beyond_a_buffer_is_found(kernels: Launcher) -> None:
    params = WrongParams(blocks=1, mode=READS_BEYOND)
    buffers = {"values": VALUES[:1], "out": torch.zeros(64)}
    with pytest.raises(EmulatorError, match="heap-buffer-overflow"):
        kernels.on("addresses").launch("wrong_kernels", "wrong", params, buffers)


@pytest.mark.parametrize("mode", [TOO_MANY_THREADS, TOO_MUCH_SHARED])
def test_launches_that_no_device_accepts_are_refused(kernels: Launcher, mode: int) -> None:
    with pytest.raises(LaunchError):
        run(kernels, mode)


def test_clusters_are_refused_before_sm_90(kernels: Launcher) -> None:
    with pytest.raises(LaunchError):
        run(kernels.on(arch=89), CLUSTER_RIGHT)
