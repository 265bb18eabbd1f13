"""Other trainers over the fused head. Each module imports its library when it is imported.

Names are imported when first used, as those of the package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavalign_fast.integrations.attach import attach_head, detach_head
    from wavalign_fast.integrations.fused_head import FusedHead

__all__ = ["FusedHead", "attach_head", "detach_head"]
_HOMES = {
    "FusedHead": "fused_head",
    "attach_head": "attach",
    "detach_head": "attach",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
