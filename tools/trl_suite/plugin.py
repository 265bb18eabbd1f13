"""A plugin of pytest that puts one of the two classes where TRL's tests look for it."""

import os

SIDE = "TRL_SUITE_SIDE"
"""The variable that says which: ``theirs`` or ``ours``."""


def pytest_configure(config: object) -> None:
    import trl
    from trl import import_utils

    # The tests may be of another release than TRL, and ask for names that this one has dropped.
    vars(import_utils).setdefault("is_joblib_available", lambda: False)
    # Liger swaps layers of transformers for Triton's, in place: without a GPU every test after
    # that would fail.
    import_utils.is_liger_kernel_available = lambda **_: False
    if os.environ[SIDE] == "ours":
        from wavalign_fast.integrations.trl import FusedGRPOTrainer

        trl.GRPOTrainer = FusedGRPOTrainer
