"""What tasks of the user's own model and data share: files, checks at the start, examples."""

import functools
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wavalign_fast.data.records import Completion, Demonstration, Evaluation, Example, Preference
from wavalign_fast.errors import UserError, naming
from wavalign_fast.models import PromptEmbeddings, TwoStreams, load_checkpoint
from wavalign_fast.recipes.answers import Vocabulary, sample_answers
from wavalign_fast.recipes.examples import check_answered, demonstrations_of, preferences_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class FromRun:
    """What the tasks take from other keys of the run; ``FROM_RUN`` of their options names them."""

    model_path: str | None
    prompts: int
    group_size: int
    max_new_tokens: int
    needs_rewards: bool
    needs_anchor: bool
    eval_items: int
    timeout_s: float


def from_run(given: Mapping[str, Any]) -> tuple[FromRun, dict[str, Any]]:
    """Splits the keywords of a task: what is of the run, and the options."""
    names = [field.name for field in fields(FromRun)]
    options = {key: value for key, value in given.items() if key not in names}
    return FromRun(**{name: given[name] for name in names}), options


class OwnData(Protocol):
    """The options that say where examples are."""

    @property
    def data(self) -> Any:
        """A file, or several."""
        ...

    @property
    def eval_data(self) -> Any:
        """Likewise, ``None`` without evaluations."""
        ...

    @property
    def eval_temperature(self) -> float:
        """Of the answers in evaluations; 0 is greedy."""
        ...


class OwnModelTask(ABC):
    """A task whose model is a directory of the user's, and whose examples are in files.

    ``train_examples`` and ``held_out`` are read at their first use, so that a run can be talked to
    where its data is not.

    Raises:
        UserError: there is no model, or nothing to evaluate on.
    """

    tokens: Vocabulary
    prompt_embeddings: PromptEmbeddings | None = None
    streams: TwoStreams | None = None

    def __init__(self, options: OwnData, run: FromRun) -> None:
        if run.model_path is None:
            raise UserError("model.path: nothing given, wanted the directory of a model")
        if run.eval_items and options.eval_data is None:
            raise UserError(
                "task.eval_data: nothing given, wanted held-out records, or train.eval_items=0 "
                f"instead of {run.eval_items}"
            )
        self.directory = Path(run.model_path).expanduser()
        self.rows = run.prompts * run.group_size
        self.max_new_tokens = run.max_new_tokens
        self.eval_temperature = options.eval_temperature
        self.needs_anchor = run.needs_anchor
        self._data, self._eval_data = options.data, options.eval_data
        self._known: dict[tuple[Path, ...], tuple[Example, ...]] = {}

    @abstractmethod
    def _read(self, data: Any) -> tuple[Example, ...]:
        """Reads the examples of files, and logs which records were left out and why."""

    def _examples(self, key: str, data: Any) -> tuple[Example, ...]:
        """Reads files once, also where two keys name the same ones."""
        listed = [data] if isinstance(data, str | Path) else data
        files = tuple(Path(path).resolve() for path in listed)
        if files not in self._known:
            with naming(key):
                self._known[files] = self._read(data)
        return self._known[files]

    @functools.cached_property
    def train_examples(self) -> tuple[Example, ...]:
        """Reads the training data."""
        examples = self._examples("task.data", self._data)
        if self.needs_anchor:
            check_answered(examples, self._data)
        return examples

    @functools.cached_property
    def held_out(self) -> tuple[Example, ...]:
        """Reads the data of evaluations."""
        assert self._eval_data is not None  # checked at the start
        return self._examples("task.eval_data", self._eval_data)

    @property
    def preferences(self) -> list[Preference]:
        """The pairs of those examples that have a rejected answer."""
        return preferences_of(self.train_examples)

    def demonstrations(
        self, examples: Sequence[Example], rng: random.Random
    ) -> list[Demonstration]:
        """Returns the answers of those examples that have one."""
        return demonstrations_of(examples)

    def evaluate(self, model: "PreTrainedModel", *, items: int, seed: int) -> Evaluation:
        """Evaluates ``items`` answers to held-out examples; see the two methods it calls."""
        return self.judge_evaluation(
            self.sample_evaluation(model, items=items, seed=seed, rank=0, world=1)
        )

    def sample_evaluation(
        self, model: "PreTrainedModel", *, items: int, seed: int, rank: int, world: int
    ) -> list[Completion]:
        """Samples the answers ``rank``, ``rank + world``, … of an evaluation of ``items`` ones.

        The held-out examples are repeated as often as needed, unless decoding is greedy. An answer
        has the same draws on any rank of any world.
        """
        if items < 1:
            raise ValueError(f"items is {items}, wanted at least 1")
        examples = self.held_out
        if self.eval_temperature == 0:
            items = min(items, len(examples))
        own = range(rank, items, world)
        asked = [examples[item % len(examples)] for item in own]
        return self._sampled(model, asked, rows=self.rows, seed=seed, items=own)

    @abstractmethod
    def judge_evaluation(self, answers: Sequence[Completion]) -> Evaluation:
        """Returns the metrics of all answers of an evaluation, and samples of them."""

    def _sampled(
        self,
        model: "PreTrainedModel",
        examples: Sequence[Example],
        *,
        rows: int,
        seed: int,
        items: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Samples an answer to each example, at the temperature of evaluations."""
        return sample_answers(
            model,
            examples,
            self.tokens,
            temperature=self.eval_temperature,
            max_new_tokens=self.max_new_tokens,
            rows=rows,
            seed=seed,
            items=items,
            prompt_embeddings=self.prompt_embeddings,
            streams=self.streams,
        )

    def load_model(self) -> "PreTrainedModel":
        """Loads the model of ``model.path``, in fp32 and in eval mode."""
        import torch

        return load_checkpoint(self.directory, dtype=torch.float32).eval()
