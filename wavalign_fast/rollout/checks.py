"""Checks the arguments of sampling before the model runs, and says what is wrong with logits."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from wavalign_fast.errors import UserError, shown
from wavalign_fast.ops.inputs import SMALLEST_TEMPERATURE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NO_END = -1


def end_ids(eos_id: int | Iterable[int] | Tensor | None) -> frozenset[int]:
    """Returns the ids that end a completion.

    Args:
        eos_id: one id or several, in any container, tensor or array. With ``None`` or -1 only the
            length limit ends a completion.

    Raises:
        TypeError: an id is not a whole number (a bool is not one).
        ValueError: an empty container, or a negative id among several.
    """
    plain = _plain(eos_id)
    if plain is None or (plain == NO_END and type(plain) is int):
        return frozenset()
    if not isinstance(plain, Iterable):
        plain = [plain]
    ids = frozenset(_whole("eos_id", token) for token in _items("eos_id", plain))
    if not ids:
        raise ValueError("eos_id is empty, wanted ids, or None for no end")
    if min(ids) < 0:
        raise ValueError(f"eos_id is {min(ids)}, wanted 0 or more, or None for no end")
    return ids


def check_numbers(
    group_size: int, max_new_tokens: int, temperature: float, generator: torch.Generator | None
) -> None:
    """Raises for counts below 1, unusable temperatures, and a seed in place of a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        raise TypeError(f"generator is {shown(generator)} ({kind}), wanted a torch.Generator")
    for name, value in (("group_size", group_size), ("max_new_tokens", max_new_tokens)):
        if _whole(name, value) < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        kind = type(temperature).__name__
        raise TypeError(f"temperature is {temperature!r} ({kind}), wanted a number")
    # This comparison also works for whole numbers that no float can hold.
    if not 0 <= temperature <= sys.float_info.max:
        raise ValueError(
            f"temperature is {shown(temperature)}, wanted 0 (greedy) or more, and finite"
        )
    if 0 < temperature < SMALLEST_TEMPERATURE:
        raise ValueError(
            f"temperature is {temperature}, wanted 0 (greedy) or at least "
            f"{SMALLEST_TEMPERATURE:.1e}"
        )


def check_draws(
    draws: Tensor,
    shape: tuple[int, int],
    temperature: float,
    generator: torch.Generator | None,
) -> None:
    """Raises unless ``draws`` is float64 of this shape in [0, 1), and the only source of chance."""
    if generator is not None:
        raise ValueError("a generator and draws are given, wanted one of them")
    if temperature == 0:
        raise ValueError("draws are given at temperature 0 (greedy), wanted no draws")
    if not isinstance(draws, Tensor) or draws.dtype != torch.float64 or draws.shape != shape:
        kind = f"{draws.dtype} {list(draws.shape)}" if isinstance(draws, Tensor) else shown(draws)
        raise ValueError(
            f"draws are {kind}, wanted torch.float64 {list(shape)}, one number for each of the "
            "completions and tokens"
        )
    if not bool(((draws >= 0) & (draws < 1)).all()):
        raise ValueError("draws hold a number outside of [0, 1), wanted uniform numbers in it")


def check_ids(
    model: "PreTrainedModel",
    prompt_ids: Sequence[Sequence[int]] | Tensor,
    *,
    ends: frozenset[int],
    pad_id: int,
    vectors: int = 0,
) -> list[list[int]]:
    """Returns the prompts as lists of ids; raises for an id without an embedding.

    Args:
        vectors: how many ids behind the vocabulary prompts may hold.
    """
    size = model.get_input_embeddings().weight.shape[0]
    for name, token in (("pad_id", pad_id), *(("eos_id", end) for end in sorted(ends))):
        check_id(name, token, size)
    return check_prompts(prompt_ids, size, vectors)


def check_id(name: str, token: int, size: int) -> None:
    """Raises unless ``token`` is in a vocabulary of ``size`` ids."""
    if not 0 <= _whole(name, token) < size:
        raise ValueError(f"{name} is {token}, wanted 0 <= id < {size}, the model's vocabulary")


def check_prompts(
    prompt_ids: Sequence[Sequence[int]] | Tensor, size: int, vectors: int = 0
) -> list[list[int]]:
    """Returns the prompts as lists of ids; raises for one outside of [0, size + vectors)."""
    prompts = []
    for row, prompt in enumerate(_items("prompt_ids", _plain(prompt_ids))):
        what = f"prompt {row}"
        ids = [_whole(what, token) for token in _items(what, _plain(prompt))]
        if not ids:
            raise ValueError(f"{what} is empty, wanted at least one id in every prompt")
        for token in (min(ids), max(ids)):
            if not 0 <= token < size + vectors:
                behind = f" and {vectors} vectors of prompts" if vectors else ""
                raise ValueError(
                    f"{what} holds the id {token}, wanted 0 <= id < {size + vectors}, the model's "
                    f"vocabulary{behind}"
                )
        prompts.append(ids)
    return prompts


def refuse_logits(logits: Tensor, row: int, step: int, group_size: int) -> NoReturn:
    """Raises ``UserError`` about the logits [V] of a completion, which are no distribution."""
    counts = [int(kind(logits).sum()) for kind in (torch.isnan, torch.isposinf, torch.isfinite)]
    raise UserError(
        f"completion {row} (of prompt {row // group_size}), token {step}: its {len(logits)} logits "
        f"are {counts[0]} NaN, {counts[1]} inf, {counts[2]} finite, wanted finite ones; a weight "
        "of the model is not finite, or its dtype overflows"
    )


def _plain(value: Any) -> Any:
    """Converts tensors, arrays and their scalars to Python numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _items(what: str, values: Any) -> Iterable[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        kind = type(values).__name__
        raise TypeError(f"{what} is {values!r} ({kind}), wanted a sequence of ids")
    return values


def _whole(what: str, value: Any) -> int:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what}: {value!r} ({type(value).__name__}) given, wanted a whole number")
    return value
