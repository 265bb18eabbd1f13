"""Faults in the compiled code, which are in no source: the emulator must notice each."""

import pytest

pytest.importorskip("triton")

from tools.ptx_emulator import Conditions, EmulatorError

from .mutations import MUTATIONS
from .scenes import SCENES, Scene

# Where the change is made, and what must reveal it: a fault, or wrong values.
FOUND = {
    "copy-wait-weakened": ("scorer on sm_80", "not waited for|race"),
    "product-wait-dropped": ("scorer on sm_90a", "accumulator of a wgmma"),
    "product-wait-weakened": ("scorer on sm_90a", "race|accumulator"),
    "barrier-after-copies-removed": ("scorer on sm_80", "race"),
    "barrier-before-refill-removed": ("scorer on sm_80", "race"),
    "copy-mask-dropped": ("scorer on sm_80", "past the end"),
    "reduction-barrier-removed": ("hybrid on sm_90a", "race"),
    "vector-off-by-four-bytes": ("statistics on sm_80", "misaligned"),
    "store-predicate-dropped": ("gradient on sm_80", "where p is 0|beside the rows|past the end"),
    "shuffle-distance-wrong": ("statistics on sm_90a", "race|off by"),
    "initial-value-removed": ("statistics on sm_90a", "register that was never written"),
}


def test_every_mutation_is_looked_for() -> None:
    assert FOUND.keys() == MUTATIONS.keys()


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_what_is_not_mutated_passes(scene: Scene) -> None:
    scene.run(Conditions(), lambda ptx: ptx)


@pytest.mark.parametrize("name", FOUND)
def test_mutations_are_found(name: str) -> None:
    scene_name, words = FOUND[name]
    scene, mutation = SCENES[scene_name], MUTATIONS[name]
    changed: list[str] = []

    def rewrite(ptx: str) -> str:
        result = mutation.apply(ptx)
        changed.extend([name] * (result != ptx))
        return result

    with pytest.raises((EmulatorError, AssertionError), match=words):
        scene.run(Conditions(), rewrite)
    assert changed, "the mutation changes nothing"
