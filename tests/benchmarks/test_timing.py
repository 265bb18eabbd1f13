"""The timer and the memory meter, with a fake clock where a real one would decide."""

import pytest
import torch

from benchmarks import timing


class CountingClock:
    """Side "b" takes twice as long as "a"; records the order in which the sides ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def time(self, run):
        name = run()
        self.ran.append(name)
        return {"a": 1.0, "b": 2.0}[name], {"a": 1.5, "b": 3.0}[name]


def test_sides_run_in_alternating_order_after_a_warm_up():
    clock = CountingClock()
    report = timing.paired({"a": lambda: "a", "b": lambda: "b"}, rounds=3, clock=clock)
    assert clock.ran == ["a", "b", "b", "a", "a", "b"]
    assert report["a"] == {
        "rounds": 3,
        "wall_s": 1.0,
        "wall_quartiles_s": [1.0, 1.0],
        "cpu_s": 1.5,
        "cpu_quartiles_s": [1.5, 1.5],
        "wall_ratio_to": {"b": 0.5},
    }
    assert report["b"]["wall_ratio_to"] == {"a": 2.0}


def test_a_side_that_has_just_run_is_not_warmed_up():
    ran = []
    sides = {name: lambda name=name: ran.append(name) or name for name in "ab"}
    timing.paired(sides, rounds=2, clock=CountingClock(), warm=["a"])
    assert (ran.count("a"), ran.count("b")) == (2, 3)


def test_one_round_has_no_quartiles():
    with pytest.raises(ValueError, match="got 1, want >= 2"):
        timing.paired({"a": lambda: None}, rounds=1)


def test_cpu_time_excludes_waiting():
    import time

    clock = timing.HostClock()
    wall, cpu = clock.time(lambda: time.sleep(0.2))
    assert wall >= 0.2 and cpu < 0.1


def test_memory_that_is_touched_counts_even_when_it_is_freed():
    extra = timing.peak_extra_bytes(lambda: torch.ones(2**24).sum())  # 64 MiB
    if extra is None:
        pytest.skip("this kernel does not let a process reset its peak")
    assert 60 * 2**20 <= extra <= 80 * 2**20
    assert timing.peak_extra_bytes(lambda: None) < 2**20
