"""How ranks agree, fail together, and start."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.data.records import Completion, Example
from wavalign_fast.errors import OtherRankError, UserError, is_shared
from wavalign_fast.train.exchange import everywhere, own_prompts, rewards_everywhere
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks, backend_of, started_ranks
from wavalign_fast.train.torchrun import VARIABLES
from wavalign_fast.train_command import resume_command


def here() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size())


def sums():
    ranks = here()
    values = torch.tensor([0.1, 1e16, -1e16]) * (ranks.rank + 1)
    return [ranks.sum(values), ranks.largest([ranks.rank, -ranks.rank]), ranks.gather(ranks.rank)]


def test_sums_have_the_same_bits_on_all_ranks():
    first, *others = run_ranks(3, sums)
    assert first[1:] == [[2.0, 0.0], [0, 1, 2]]
    assert torch.equal(first[0][:1], torch.tensor([0.1]) + 0.2 + 0.3)
    for other in others:
        assert torch.equal(other[0], first[0]) and other[1:] == first[1:]


def failures(failing: dict[int, str]):
    """Returns what each rank saw when some of them raised: kind, message, whether all know."""
    ranks = here()
    try:
        with ranks.failing_together():
            if ranks.rank in failing:
                raise UserError(failing[ranks.rank])
    except UserError as error:
        return [type(error).__name__, str(error), is_shared(error)]
    return None


@pytest.mark.parametrize(
    ("failing", "own"), [({}, []), ({1: "bad"}, [1]), ({1: "bad", 2: "bad"}, [1]),
                         ({0: "bad", 2: "worse"}, [0, 2])],
)  # fmt: skip
def test_what_one_rank_raises_all_raise(failing, own):
    found = run_ranks(3, failures, failing)
    if not failing:
        assert found == [None] * 3
        return
    first = min(failing)
    for rank, (kind, message, shared) in enumerate(found):
        assert shared
        if rank in own:
            assert (kind, message) == ("UserError", failing[rank])
        else:
            assert kind == "OtherRankError"
            assert message == f"rank {first} of 3 failed: {failing[first]}"


def main_only():
    ranks, calls = here(), []
    assert ranks.on_each(lambda: ranks.rank) == list(range(ranks.world))
    value = ranks.on_main(lambda: calls.append(1) or {"loaded": torch.ones(2)})
    try:
        ranks.on_main(lambda: [].pop())
    except Exception as error:
        return [len(calls), value, type(error).__name__]
    return None


def test_a_call_on_the_main_rank_gives_its_value_and_its_error_to_all():
    main, other = run_ranks(2, main_only)
    assert [main[0], other[0]] == [1, 0]
    assert torch.equal(main[1]["loaded"], other[1]["loaded"])
    assert [main[2], other[2]] == ["IndexError", OtherRankError.__name__]


def exchanged(count: int, group: int):
    """All completions of a step as (prompt, ids, ended, log-probs), and the rewards."""
    ranks = here()
    examples = [
        Example(id=str(i), prompt="", prompt_ids=(i + 1,), reference="") for i in range(count)
    ]
    mine = [
        Completion(
            example=examples[p],
            ids=tuple(range(p + g)),
            ended=bool(g % 2),
            logps=-torch.arange(p + g, dtype=torch.float32),
        )
        for p in own_prompts(count, ranks)
        for g in range(group)
    ]
    rewards = torch.tensor([float(len(done.ids)) for done in mine])
    rewards[rewards == 3] = torch.nan
    found = everywhere(mine, examples, group, ranks)
    table = rewards_everywhere(rewards, count, group, ranks)
    rows = [(done.example.id, done.ids, done.ended, done.logps.tolist()) for done in found]
    return [rows, table]


@pytest.mark.parametrize("count", [1, 5])
def test_every_rank_has_every_completion_and_reward(count):
    wanted = [
        (str(p), tuple(range(p + g)), bool(g % 2), [-float(i) for i in range(p + g)])
        for p in range(count)
        for g in range(2)
    ]
    lengths = torch.tensor([float(len(ids)) for _, ids, *_ in wanted]).view(count, 2)
    for found, rewards in run_ranks(3, exchanged, count, 2):
        assert found == wanted
        assert torch.equal(rewards.nan_to_num(3.0), lengths)
        assert torch.equal(rewards.isnan(), lengths == 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0"}, "RANK set without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (dict.fromkeys(VARIABLES, "x"), "RANK: 'x' given, wanted a whole number"),
    ],
)
def test_half_of_torchruns_variables_are_refused(monkeypatch, given, message):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), started_ranks(1.0):
        pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "wavalign-fast"),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "wavalign-fast"),
        (
            {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"},
            "torchrun --nproc-per-node 3 -m wavalign_fast",
        ),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "torchrun ... -m wavalign_fast"),
        ({"WORLD_SIZE": "4"}, "torchrun ... -m wavalign_fast"),
    ],
)
def test_the_command_that_continues_a_run_starts_the_same_ranks(monkeypatch, given, words):
    for name in (*VARIABLES, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (dict.fromkeys(VARIABLES, "0") | given if given else {}).items():
        monkeypatch.setenv(name, value)
    command = resume_command(["train", "run.yaml", "--overwrite"], ["run.yaml"], None)
    assert command == f"{words} train run.yaml --resume"


def test_a_group_of_one_that_the_run_needed_ends_with_it():
    with started_ranks(1.0):
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    assert not dist.is_initialized()


def test_a_group_that_was_there_before_stays():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with started_ranks(1.0):
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_alone_nothing_is_started():
    with started_ranks(1.0) as ranks:
        assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
        assert not dist.is_initialized()
        ranks.barrier()


def test_a_mistake_is_reported_before_torchrun_ends_the_ranks(tmp_path):
    """Real ranks: the first rank that exits makes torchrun end the others."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, "-m", "wavalign_fast", "train", "--recipe", "spoken-sums",
         "--resume", "--output", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    lines = [line for line in run.stderr.splitlines() if "wavalign-fast: error" in line]
    assert lines and run.returncode != 0, run.stderr
    for line in lines:
        assert line.endswith(f"nothing to resume in {tmp_path}/spoken-sums-wavalign")
    cause = run.stderr.partition("Root Cause")[2]  # the end of torchrun's report
    assert f"nothing to resume in {tmp_path}/spoken-sums-wavalign" in cause


def test_tensors_on_a_gpu_go_through_nccl_and_others_through_gloo():
    assert backend_of(torch.device("cpu")) == "gloo"
    assert backend_of(torch.device("cuda", 1)) == "cpu:gloo,cuda:nccl"


def test_a_process_alone_with_two_dtypes_starts_the_backend_of_its_device(monkeypatch):
    seen = []

    def started(backend, **options):
        seen.append(backend)
        raise RuntimeError("far enough")

    monkeypatch.setattr(dist, "init_process_group", started)
    policy = Policy(torch.nn.Linear(2, 2))
    for device in ("cpu", "cuda:0"):
        with pytest.raises(RuntimeError, match="far enough"):
            ranks = Ranks(device=torch.device(device))
            wrapped(policy, ParallelConfig(), ranks, compute_dtype=torch.bfloat16)
    assert seen == ["gloo", "cpu:gloo,cuda:nccl"]
