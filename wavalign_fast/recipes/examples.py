"""What recipes make of examples that were read: demonstrations and pairs."""

import logging
from collections.abc import Sequence
from typing import Any

from wavalign_fast.data.records import Demonstration, Example, Preference
from wavalign_fast.errors import UserError

logger = logging.getLogger(__name__)


def check_answered(examples: Sequence[Example], data: Any) -> None:
    """Raises ``UserError`` if no example has an answer for the anchor; warns if some have none.

    Args:
        data: what they were read from, for messages.
    """
    answered = sum(bool(example.answer_ids) for example in examples)
    if answered == 0:
        raise UserError(
            f"task.data: no record of {data} has an answer for the anchor; wanted answers, or "
            "anchor.rows=0"
        )
    if answered < len(examples):
        logger.warning(
            "%s: %d of %d records have no answer; the anchor leaves them out",
            data, len(examples) - answered, len(examples),
        )  # fmt: skip


def demonstrations_of(examples: Sequence[Example]) -> list[Demonstration]:
    """Returns the answers of those examples that have one."""
    return [
        Demonstration(
            prompt_ids=example.prompt_ids,
            answer_ids=example.answer_ids,
            history=example.history,
        )
        for example in examples
        if example.answer_ids
    ]


def preferences_of(examples: Sequence[Example]) -> list[Preference]:
    """Returns the pairs of those examples that have a rejected answer."""
    return [
        Preference(
            prompt_ids=example.prompt_ids,
            chosen_ids=example.answer_ids,
            rejected_ids=example.rejected_ids,
            example_id=example.id,
        )
        for example in examples
        if example.rejected_ids
    ]
