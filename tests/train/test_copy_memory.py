"""The copy that samples has memory while it samples and while it is evaluated, and only then."""

import pytest
import torch

from wavalign_fast.rollout import engine
from wavalign_fast.train import collect, policy

COPIED = ("rollout.dtype=bfloat16", "train.steps=2", "train.eval_every=1")
SAME = ("loss/", "reward/", "tokens/", "grad_norm")
"""Metrics that follow from the sampled tokens, and none of time."""


def followed(task, patch) -> dict[str, set[bool]]:
    """By phase, whether the copy of the run that follows has memory; filled while it runs."""
    twins, seen = [], {}
    make = collect.Twin

    def made(*args, **options):
        twins.append(make(*args, **options))
        assert twins[-1].is_copy
        return twins[-1]

    def follow(owner, name, phase) -> None:
        original = getattr(owner, name)

        def noted(*args, **options):
            has_memory = not any(weight.is_meta for weight in twins[-1].model.parameters())
            seen.setdefault(phase, set()).add(has_memory)
            return original(*args, **options)

        patch.setattr(owner, name, noted)

    patch.setattr(collect, "Twin", made)
    follow(engine, "sample_with_logps", "rollout")
    follow(task, "rewards", "judge")
    follow(policy, "hidden_states", "training")
    follow(task, "evaluate", "evaluation")
    return seen


def test_a_copy_has_memory_only_where_it_is_used(train, toy_task, metrics_of, tmp_path) -> None:
    found = {}
    for keep in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            task = toy_task()
            seen = followed(task, patch)
            name = f"keep-{keep}"
            trainer = train(*COPIED, f"rollout.keep_copy={str(keep).lower()}", name=name, task=task)
        assert seen == {
            "rollout": {True},
            "judge": {keep},
            "training": {keep},
            "evaluation": {True},
        }
        metrics = [
            {key: value for key, value in record.items() if key.startswith(SAME)}
            for record in metrics_of(tmp_path / name)
        ]
        assert "loss/policy" in metrics[0]
        found[keep] = metrics, [weight.detach() for weight in trainer.model.parameters()]
    assert found[False][0] == found[True][0]
    assert all(map(torch.equal, found[False][1], found[True][1]))
