"""What the groups of a configuration share: their base class, and the ranges of their values.

Each part of the trainer has its group in a file of its own; ``schema`` puts them together.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# The upper bounds are far beyond any use. With them a typing error is reported by the name of its
# key before anything is loaded, instead of by some library in the middle of a run.
MANY = 1_000_000_000
MOST_ROWS = 1_000_000
MOST_TOKENS = 1_000_000
MOST_IDS = 2**31
MOST_THREADS = 1024
LARGEST_SEED = 2**63 - 1
LONGEST_NAME = 200
LARGEST = 1e6

Scope = Literal["text", "speech", "all"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=LARGEST, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, le=LARGEST, allow_inf_nan=False)]
ClipLow = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
ImportanceCap = Annotated[float, Field(ge=1.0, le=LARGEST, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MANY)]
AtLeastOne = Annotated[int, Field(ge=1, le=MANY)]
Rows = Annotated[int, Field(ge=0, le=MOST_ROWS)]
AtLeastOneRow = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


def _pair(value: Any) -> Any:
    """Turns a list into a tuple: YAML has only lists, and strict validation wants a tuple."""
    return tuple(value) if isinstance(value, list) else value


AsTuple = BeforeValidator(_pair)


class Group(BaseModel):
    """A group of keys: immutable, without unknown keys, and without silent conversions.

    ``help()`` of a group lists its keys.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Lists the keys in the docstring, where ``help()`` finds them."""
        keys = "\n".join(f"    {name}: {key.description}" for name, key in cls.model_fields.items())
        cls.__doc__ = f"{cls.__doc__ or 'A group of keys.'}\n\nKeys:\n{keys}"
