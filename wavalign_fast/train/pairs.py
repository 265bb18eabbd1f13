"""Makes the preference pairs of a step: offline ones, and those of rollouts."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from wavalign_fast.config.dpo import DPOConfig
from wavalign_fast.data.preferences import read_preferences
from wavalign_fast.data.records import Completion, Demonstration, Preference
from wavalign_fast.errors import UserError, user_input
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.token_blocks import Row, cut_rows


@dataclass(frozen=True)
class PairRows:
    """The two rows of a pair, which stay together."""

    chosen: Row
    rejected: Row
    is_rollout: bool = True

    def __len__(self) -> int:
        return 2 * max(len(self.chosen), len(self.rejected))


def pair_rows(
    pairs: Sequence[Preference], counts: Sequence[bool], vectors: int = 0
) -> list[PairRows]:
    """Returns the rows of the pairs, whose answers are cut after their last id that counts.

    The rows of pair p have the indices 2p and 2p + 1. A pair with an answer without such an id is
    left out.

    Args:
        counts: one bool per id.
        vectors: how many ids behind the vocabulary prompts may hold.

    Raises:
        UserError: an empty prompt, or an id outside the layout.
    """
    rows: dict[int, dict[int, Row]] = {0: {}, 1: {}}
    for side, kind in enumerate(("chosen answer", "rejected answer")):
        answers = [
            (pair.prompt_ids, pair.rejected_ids if side else pair.chosen_ids) for pair in pairs
        ]
        for row in cut_rows(kind, answers, counts, is_rollout=True, vectors=vectors):
            rows[side][row.index] = replace(row, index=2 * row.index + side)
    both = sorted(rows[0].keys() & rows[1].keys())
    return [PairRows(rows[0][index], rows[1][index]) for index in both]


def offline_pairs(config: DPOConfig, task: Task) -> list[Preference]:
    """Returns the offline pairs of ``dpo.file`` or else of the recipe; none if they are not used.

    Raises:
        UserError: ``dpo.pairs`` wants pairs and there are none that it could use.
    """
    if config.pairs == "online":
        return []
    found = list(getattr(task, "preferences", ()))
    if config.file is not None:
        with user_input("dpo.file"):
            found = read_preferences(config.file, vocab_size=task.layout.vocab_size)
    if config.pairs == "offline" and not found:
        raise UserError("dpo.pairs: offline given, wanted pairs in dpo.file or of the recipe")
    known = {example.id for example in task.train_examples}
    if config.pairs == "auto" and found and not any(pair.example_id in known for pair in found):
        raise UserError(
            f"dpo.pairs: auto given, and none of {len(found)} offline pairs has the id of a "
            "training example; wanted such ids, or dpo.pairs offline"
        )
    return found


def by_example(preferences: Iterable[Preference]) -> dict[str, list[Preference]]:
    """Returns the pairs of each training example that has some."""
    found: dict[str, list[Preference]] = {}
    for pair in preferences:
        if pair.example_id is not None:
            found.setdefault(pair.example_id, []).append(pair)
    return found


def offline_pair(
    preferences: Mapping[str, Sequence[Preference]], example_id: str, *, seed: int, step: int
) -> Preference | None:
    """Returns one pair of an example, another one in each step; ``None`` if it has none."""
    known = preferences.get(example_id)
    if not known:
        return None
    return random.Random(f"pair:{seed}:{step}:{example_id}").choice(known)


def best_and_worst(
    completions: Sequence[Completion], rewards: Tensor, *, min_gap: float
) -> list[Preference]:
    """Pairs the best completion of each prompt with its worst, if their rewards are apart.

    The first one counts among equal rewards. A completion without a reward is in no pair.

    Args:
        completions: B·G of them, by prompt.
        rewards: [B, G], NaN for a missing one.
        min_gap: smallest difference of the rewards that makes a pair; equal rewards make none.
    """
    pairs = []
    group = rewards.shape[1]
    for prompt, row in enumerate(rewards.tolist()):
        known = [place for place, reward in enumerate(row) if not math.isnan(reward)]
        if not known:
            continue
        best, worst = max(known, key=row.__getitem__), min(known, key=row.__getitem__)
        gap = row[best] - row[worst]
        if gap > 0 and gap >= min_gap:
            chosen, rejected = (completions[prompt * group + place] for place in (best, worst))
            pairs.append(_pair(rejected, chosen.ids))
    return pairs


def with_demonstrations(
    completions: Sequence[Completion], shown: Sequence[Demonstration]
) -> list[Preference]:
    """Pairs the demonstration of each prompt with each of its completions, as the worse answer.

    A completion that equals the demonstration makes no pair.

    Args:
        completions: B·G of them, by prompt.
        shown: the B demonstrations.
    """
    group = len(completions) // max(len(shown), 1)
    return [
        _pair(done, shown[index // group].answer_ids)
        for index, done in enumerate(completions)
        if done.ids != shown[index // group].answer_ids
    ]


def _pair(rejected: Completion, chosen_ids: tuple[int, ...]) -> Preference:
    return Preference(
        prompt_ids=rejected.example.prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=rejected.ids,
        example_id=rejected.example.id,
    )
