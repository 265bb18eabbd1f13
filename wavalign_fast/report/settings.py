"""Shows in which settings the arms differ, and the settings that all of them share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wavalign_fast.config.layers import leaves
from wavalign_fast.config.yaml import parse_yaml
from wavalign_fast.redaction import HIDDEN, is_secret, without_address_secrets
from wavalign_fast.report.formatting import escape

if TYPE_CHECKING:
    from wavalign_fast.report.runs import Run

NAMES = {"name", "arm"}
"""Settings that say only what the run is called."""
ABSENT = "–"


def flat_settings(text: str) -> dict[str, str]:
    """Returns the values of a ``config.yaml`` as text by dotted key, without secrets.

    Raises:
        UserError: the text is not YAML.
    """
    tree = parse_yaml(text, "config.yaml")
    if not isinstance(tree, dict):
        return {}
    return {
        key: HIDDEN if is_secret(key) and value is not None else _value(value)
        for key, value in leaves(tree)
    }


def settings_section(runs: Sequence["Run"]) -> str:
    """Writes a table of the settings that differ, and folded away those that do not.

    A run whose configuration cannot be read is shown as the text that its file holds.
    """
    known = [run for run in runs if run.settings]
    parts = [_differences(known), _shared(known)]
    parts += [
        f"<details><summary>{escape(run.name)}</summary><pre>{escape(run.config)}</pre></details>"
        for run in runs
        if not run.settings and run.config
    ]
    return "".join(parts)


def _differences(runs: Sequence["Run"]) -> str:
    differing = _differing(runs)
    if len(runs) < 2:
        return ""
    if not differing:
        return "<p class='note'>The arms have the same settings.</p>"
    heads = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        + "".join(f"<td>{escape((run.settings or {}).get(key, ABSENT))}</td>" for run in runs)
        + "</tr>"
        for key in differing
    )
    return (
        "<p class='note'>What differs between the arms.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Settings that differ">'
        f'<table class="settings"><thead><tr><th scope="col">Setting</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _shared(runs: Sequence["Run"]) -> str:
    if not runs:
        return ""
    left_out = {*_differing(runs), *(NAMES if len(runs) > 1 else ())}
    settings = runs[0].settings or {}
    lines = [f"{key}: {value}" for key, value in settings.items() if key not in left_out]
    of = "of all arms" if len(runs) > 1 else "of the run"
    return (
        f"<details><summary>{len(lines)} settings {of}</summary>"
        f"<pre>{escape(chr(10).join(lines))}</pre></details>"
    )


def _differing(runs: Sequence["Run"]) -> list[str]:
    """Returns the keys with more than one value, in the order of the first run that has them."""
    keys = dict.fromkeys(key for run in runs for key in run.settings or {})
    return [
        key
        for key in keys
        if key not in NAMES and len({(run.settings or {}).get(key) for run in runs}) > 1
    ]


def _value(value: Any) -> str:
    """Returns a value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    return without_address_secrets(str(value))
