"""The compiled twins of functions of this package, where they were built."""

import importlib
from typing import Any

from wavalign_fast.ops.extension import load_module

EXTENSION: dict[str, Any] | str = load_module("_host", "host", "compiler")
"""The build information, or why plain Python serves."""
HOST: Any = None if isinstance(EXTENSION, str) else importlib.import_module("wavalign_fast._host")
"""The module ``wavalign_fast._host``, or ``None``."""
