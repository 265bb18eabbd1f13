"""The page of every configuration key, from the texts of the settings themselves."""

from collections.abc import Iterator

from wavalign_fast.config.listing import Setting, settings
from wavalign_fast.recipes import PACKAGES

HEAD = """# Every config key

A run is configured by a YAML file (`wavalign-fast train run.yaml`), by `key=value` on the command
line, or by both; the command line wins. `wavalign-fast config` lists the same keys in a terminal,
and `wavalign-fast init` writes a file that has them all. A key that does not exist, or a value that
does not fit, is refused before anything is loaded.

`train.steps=20` on the command line is this in a file:

    train:
      steps: 20

"Default" is what holds when neither says anything. A recipe may have another default, which stands
beside it. Keys below `task` belong to the recipe that is named.
"""


def settings_page() -> str:
    """Returns the page, as Markdown, with an anchor for every key."""
    found = settings(list(PACKAGES))
    (task,) = found.pop("task")
    own = [key for key in found if key.startswith("task.")]
    lines = [HEAD]
    for key in [*(key for key in found if key not in own), "task", *own]:
        if key == "task":
            lines += _group(task)
        for setting in found.get(key, ()):
            lines += _group(setting) if setting.is_group else _key(setting)
    return "\n".join(lines) + "\n"


def _group(setting: Setting) -> Iterator[str]:
    level = "#" * min(2 + setting.key.count("."), 4)
    yield f"{level} `{setting.key}` {{ #{_anchor(setting)} }}"
    yield ""
    yield _text(setting.text)
    yield ""


def _key(setting: Setting) -> Iterator[str]:
    default = "must be set" if setting.default is None else f"default `{setting.default or ' '}`"
    notes = "".join(f" · {_note(note)}" for note in setting.notes)
    yield f"**`{setting.key}`**{{ #{_anchor(setting)} }} · {default}{notes}"
    yield ""
    yield f":   {_text(setting.text)}"
    yield f"    *{_text(setting.wanted)}*"
    yield ""


def _note(note: str) -> str:
    recipe, colon, value = note.partition(": ")
    return f"in `{recipe}` `{value}`" if colon else f"recipe `{recipe}`"


def _anchor(setting: Setting) -> str:
    """Keys that several recipes have get the recipe's name in front."""
    recipe = setting.notes[0] if setting.key.startswith("task.") else ""
    return f"{recipe}.{setting.key}" if recipe else setting.key


def _text(text: str) -> str:
    """Field texts are plain: what Markdown would take for markup is escaped outside of code."""
    parts = text.replace("``", "`").split("`")
    for place in range(0, len(parts), 2):
        for sign in "*_<[":
            parts[place] = parts[place].replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return "`".join(parts)
