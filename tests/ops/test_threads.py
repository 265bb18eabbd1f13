"""Threads of the CPU kernels: no step starts too early, and any number gives the same bits."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.builds import session_folder
from tests.ops.problems import CPU, problem
from tools.build_once import build_once
from wavalign_fast.ops import linear_logprob

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of schedule.cpp, built with the thread sanitizer, which reports data races."""
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("needs g++ on x86-64")
    program = session_folder(tmp_path_factory, "schedule") / "schedule"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-fsanitize=thread"]
    sources = [ROOT / "tests" / "ops" / "schedule.cpp", ROOT / "csrc" / "cpu" / "schedule.cpp"]
    build_once(program, ["g++", *flags, f"-I{ROOT / 'csrc'}", *map(str, sources)])
    return program


def run(program: Path, *arguments: int) -> str:
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# With full groups, a partial last group, one group for all items, and no second stage.
@pytest.mark.parametrize(
    ("threads", "items", "group", "blocks"),
    [(1, 23, 4, 3), (8, 23, 4, 3), (8, 24, 2, 5), (3, 5, 8, 2), (4, 20, 4, 0)],
)
def test_each_stage_waits_for_what_it_needs(schedule, threads, items, group, blocks):
    run(schedule, threads, items, group, blocks, -1)


def test_a_failed_step_stops_all_threads(schedule):
    assert run(schedule, 4, 23, 4, 3, 6) == "1 thrown\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_the_same_for_any_number_of_threads(dtype):
    """With many groups of tiles, and a weight gradient written with non-temporal stores."""
    # 36 MB in rows of 1212 bytes, not a multiple of a cache line.
    p = problem(24, 1212 // dtype.itemsize, 30_011, dtype, ignored=False)
    assert p.weight.nbytes > 32 * 2**20 and p.weight[0].nbytes % 64 != 0
    before = torch.get_num_threads()

    def gradients(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        leaves = [p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()]
        loss = (linear_logprob(*leaves, p.targets, options=CPU).logp * torch.arange(24)).sum()
        return list(torch.autograd.grad(loss, leaves))

    try:
        wanted = gradients(1)
        for threads in (2, 3, 5, 8):
            for found, one in zip(gradients(threads), wanted, strict=True):
                assert torch.equal(found, one), threads
    finally:
        torch.set_num_threads(before)
