"""The options of the hybrid loss are the parameters of ``HybridObjective``.

The trainer's ``loss`` keys repeat them with bounds and without torch; the rest is derived from
these keys. Here both lists are held together.
"""

import inspect
import re
from typing import Literal, get_args, get_origin

import pytest

import wavalign_fast as wf
from wavalign_fast.config.gate import GateConfig
from wavalign_fast.config.listing import list_settings
from wavalign_fast.config.schema import LossConfig
from wavalign_fast.ops.options import BACKENDS

PARAMETERS = {
    name: parameter
    for name, parameter in inspect.signature(wf.HybridObjective).parameters.items()
    if name != "layout"
}
OF_THE_TRAINER = {"importance_cap"}
"""Keys from which the trainer makes a column of the batch."""
OTHER_NAMES = {"gate": ["mixing", "gate"], "options": ["backend"]}
"""Parameters that are not one key of the same name."""
SHARED = [name for name in PARAMETERS if name not in OTHER_NAMES]


def test_every_option_is_a_key_in_the_same_order() -> None:
    wanted = [key for name in PARAMETERS for key in OTHER_NAMES.get(name, [name])]
    keys = [name for name in LossConfig.model_fields if name not in OF_THE_TRAINER]
    assert keys == wanted


@pytest.mark.parametrize("name", SHARED)
def test_defaults_and_choices_agree(name: str) -> None:
    parameter, key = PARAMETERS[name], LossConfig.model_fields[name]
    assert key.default == parameter.default
    if get_origin(parameter.annotation) is Literal:
        assert set(get_args(key.annotation)) == set(get_args(parameter.annotation))


def test_the_gate_and_the_backend_agree() -> None:
    parameters = inspect.signature(wf.MixingGate).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "initial"}
    keys = {name: key.default for name, key in GateConfig.model_fields.items()}
    assert keys == defaults | {"scale": (1.0, 5.0)}
    backend = LossConfig.model_fields["backend"]
    assert (backend.default, get_args(backend.annotation)) == (wf.LossOptions().backend, BACKENDS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_option_is_documented(name: str) -> None:
    assert re.search(rf"^ +([\w, ]+, )?{name}(, \w+)*: ", wf.HybridObjective.__doc__, re.MULTILINE)
    for key in OTHER_NAMES.get(name, [name]):
        assert re.search(rf"^ *loss\.{key}\b", list_settings(["loss"]), re.MULTILINE), key
        assert LossConfig.model_fields[key].description
