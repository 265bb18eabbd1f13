"""Which preference pairs a step is made of."""

import math

import torch

from wavalign_fast.data.records import Completion, Demonstration, Example, Preference
from wavalign_fast.train.pairs import best_and_worst, by_example, offline_pair, with_demonstrations

NAN = math.nan


def completions(prompts: int, group: int) -> list[Completion]:
    """Completion g of prompt b is (10 b + g,)."""
    examples = [
        Example(id=str(b), prompt="", prompt_ids=(b, b), reference="") for b in range(prompts)
    ]
    return [
        Completion(example=examples[b], ids=(10 * b + g,), ended=True)
        for b in range(prompts)
        for g in range(group)
    ]


def sides(pairs: list[Preference]) -> list[tuple[int, int]]:
    return [(*pair.chosen_ids, *pair.rejected_ids) for pair in pairs]


def test_best_and_worst_of_a_prompt_make_a_pair_if_they_are_apart() -> None:
    rewards = torch.tensor([
        [2.0, 4.0, 1.0], [3.0, 3.0, 3.0], [1.0, 1.25, 1.0], [NAN, 5.0, 2.0], [NAN, NAN, 4.0],
        [NAN, NAN, NAN], [4.0, 2.0, 4.0],
    ])  # fmt: skip
    found = best_and_worst(completions(7, 3), rewards, min_gap=0.5)
    assert sides(found) == [(1, 2), (31, 32), (60, 61)]
    assert [(pair.prompt_ids, pair.example_id) for pair in found][1] == ((3, 3), "3")
    # At a gap of 0 equal rewards still tell nothing.
    assert sides(best_and_worst(completions(7, 3), rewards, min_gap=0.0)) == [
        (1, 2), (21, 20), (31, 32), (60, 61),
    ]  # fmt: skip


def test_a_demonstration_is_better_than_every_rollout_of_its_prompt() -> None:
    shown = [Demonstration(prompt_ids=(b, b), answer_ids=(10 * b + 1,)) for b in range(2)]
    found = with_demonstrations(completions(2, 3), shown)
    # The second rollout of each prompt is the demonstration itself.
    assert sides(found) == [(1, 0), (1, 2), (11, 10), (11, 12)]
    assert found[2].prompt_ids == (1, 1)
    assert with_demonstrations([], []) == []


def test_an_example_with_several_pairs_gives_another_one_in_each_step() -> None:
    def pair(number: int, example: str | None) -> Preference:
        return Preference(
            prompt_ids=(0,), chosen_ids=(number,), rejected_ids=(9,), example_id=example
        )

    known = by_example([pair(1, "a"), pair(2, "a"), pair(3, None), pair(4, "b")])
    assert [*known] == ["a", "b"]
    assert offline_pair(known, "c", seed=0, step=1) is None
    assert offline_pair(known, "b", seed=0, step=1) == pair(4, "b")
    taken = [offline_pair(known, "a", seed=0, step=step) for step in range(20)]
    assert {one.chosen_ids for one in taken} == {(1,), (2,)}
    assert taken == [offline_pair(known, "a", seed=0, step=step) for step in range(20)]
