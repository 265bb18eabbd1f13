"""The adversarial cases on our own backends; none may fail."""

import pytest

from benchmarks.adversarial import CASES, GROUPS, NOT_APPLICABLE, Case
from benchmarks.providers import PROVIDERS, available

FULL_LOGITS = "it is the definition and builds the full logits"
BY_SHAPE = "torch chooses the kernel of a product by its shape"
NOT_PROMISED_BY_REFERENCE = {
    "memory": FULL_LOGITS,
    "rows-times-vocab": FULL_LOGITS,
    "batch-invariance-bf16": BY_SHAPE,
    "batch-invariance-fp32": BY_SHAPE,
    "batch-invariance-gradient": BY_SHAPE,
    "compile-fullgraph": "it leaves ignored rows out, and torch cannot trace their number",
}
BACKENDS = {"cpu": {}, "reference": NOT_PROMISED_BY_REFERENCE}


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(
            backend, case, id=f"{backend}-{case.name}", marks=[pytest.mark.slow] * case.slow
        )
        for backend, exempt in BACKENDS.items()
        for case in CASES
        if case.name not in exempt
    ],
)
def test_ours(backend: str, case: Case) -> None:
    (loaded,) = available([f"ours-{backend}"])
    if loaded.calls is None:
        pytest.skip(loaded.reason)
    case.run(loaded.calls)


def test_names_are_unique_and_items_have_a_group() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert set(NOT_PROMISED_BY_REFERENCE) <= set(names)
    assert {item for case in CASES for item in case.items} <= set(GROUPS)
    assert {entry.item for entry in NOT_APPLICABLE} <= set(GROUPS)


def test_every_group_has_a_case_or_a_reason() -> None:
    shown = {item for case in CASES for item in case.items}
    assert shown | {entry.item for entry in NOT_APPLICABLE} == set(GROUPS)


def test_ours_are_providers() -> None:
    assert {f"ours-{backend}" for backend in BACKENDS} <= {p.name for p in PROVIDERS}
