"""The API reference, from the docstrings and signatures of public names."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import wavalign_fast
from tools.docs_site.docstrings import markdown_of

WIDTH = 84

PAGES: dict[str, tuple[str, str, dict[str, list[str]]]] = {
    "losses": (
        "API: losses",
        "What `import wavalign_fast` offers. The losses need torch alone.",
        {"wavalign_fast": list(wavalign_fast.__all__)},
    ),
    "models": (
        "API: models and rollouts",
        "Checkpoints of the [families](../families.md), what they hear, and sampling.",
        {
            "wavalign_fast.models.families.checkpoint": ["load_family"],
            "wavalign_fast.models.families.export": ["export_family"],
            "wavalign_fast.models.families.interface": [
                "Family", "FamilyFiles", "FamilyLayout", "DialogueOptions", "Audio", "Prompt",
                "AudioSpan", "Target", "Answer", "Sampling",
            ],
            "wavalign_fast.models.prompt_audio.cache": ["PromptAudioCache"],
            "wavalign_fast.rollout": ["sample_completions", "sample_with_logps", "Sampled"],
        },
    ),
    "data": (
        "API: data and speech",
        "Dialogues, packing and interleaving, WAV files and codecs.",
        {
            "wavalign_fast.data.dialogues.read": ["read_dialogues"],
            "wavalign_fast.data.dialogues.schemas": ["ReadOptions"],
            "wavalign_fast.data.packing_plan": ["plan_packing"],
            "wavalign_fast.data.interleave": ["interleave"],
            "wavalign_fast.speech.codecs": ["open_codec"],
            "wavalign_fast.speech.codec": ["SpeechCodec", "CodecError"],
            "wavalign_fast.speech.code_cache": ["CodeCache"],
        },
    ),
    "rewards": (
        "API: rewards and judges",
        "The [judge](../judge.md) outside of a run. `JudgeOptions` takes the keys of "
        "[`task.judge`](../config_keys.md#wavalign.task.judge).",
        {
            "wavalign_fast.rewards.judge": ["Judge", "JudgeRequest"],
        },
    ),
    "integrations": (
        "API: other trainers",
        "[TRL](../trl.md), [Transformers' Trainer, Accelerate and Lightning](../hf_trainer.md); "
        "[verl](../verl.md) has an environment of its own, and so no entry here.",
        {
            "wavalign_fast.integrations": ["attach_head", "detach_head", "FusedHead"],
            "wavalign_fast.integrations.trl": [
                "FusedGRPOTrainer", "FusedSFTTrainer", "FusedDPOTrainer", "FusedKTOTrainer",
                "FusedRLOOTrainer",
            ],
            "wavalign_fast.integrations.trl_wavalign": ["WavAlignGRPOTrainer"],
            "wavalign_fast.integrations.causal_lm": ["fused_loss", "fused_causal_lm_loss"],
            "wavalign_fast.integrations.lightning": ["FusedCausalLM"],
        },
    ),
}  # fmt: skip
"""File -> (title, first sentence, module -> public names)."""


def api_pages() -> dict[str, str]:
    """Returns the pages, path in the site -> Markdown."""
    return {f"api/{name}.md": _page(*parts) for name, parts in PAGES.items()}


def _page(title: str, lead: str, modules: dict[str, list[str]]) -> str:
    lines = [f"# {title}", "", lead, ""]
    for module, names in modules.items():
        lines += [f"## {module}", ""]
        home = importlib.import_module(module)
        for name in names:
            lines += [*_documented(f"{module}.{name}", name, getattr(home, name)), ""]
    return "\n".join(lines)


def _documented(anchor: str, name: str, value: Any) -> Iterator[str]:
    yield f"### `{name}` {{ #{anchor} }}"
    yield ""
    if not callable(value):
        yield f"`{value!r}`"
        return
    if not getattr(value, "_is_protocol", False):
        yield from _signature(name, value)
    yield markdown_of(value.__doc__ or "")
    yield ""
    where = value.__module__.replace(".", "/")
    yield f"*Defined in `{where}.py`.*"
    if inspect.isclass(value):
        yield from _attributes(value)
        for member, function in _methods(value):
            yield ""
            yield f"#### `{name}.{member}` {{ #{anchor}.{member} }}"
            yield ""
            if callable(function):
                yield from _signature(member, function)
            yield markdown_of(inspect.getdoc(function) or "")


def _signature(name: str, value: Any) -> Iterator[str]:
    """Yields the signature as code, one parameter a line where one line is too short."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return
    parameters = [_plain(str(part)) for part in signature.parameters.values()]
    result = signature.return_annotation
    arrow = "" if result is inspect.Signature.empty else f" -> {_plain(_type(result))}"
    line = _plain(str(signature))
    yield "```python"
    if len(name + line) <= WIDTH or not parameters:
        yield f"{name}{line}"
    else:
        # "*" and "/" are no parameters, so they are taken from the text of the signature.
        yield f"{name}("
        kinds = [part.kind for part in signature.parameters.values()]
        keyword = next((i for i, kind in enumerate(kinds) if kind is kind.KEYWORD_ONLY), None)
        for place, part in enumerate(parameters):
            if place == keyword and not any(kind is kind.VAR_POSITIONAL for kind in kinds):
                yield "    *,"
            yield f"    {part},"
        yield f"){arrow}"
    yield "```"
    yield ""


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _plain(text: str) -> str:
    """Types without the modules that they come from."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text).replace("'", '"')


def _attributes(kind: type) -> Iterator[str]:
    """Yields the fields of a class that have a text of their own below them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for line, text in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            yield ""
            yield f"`{line.target.id}: {ast.unparse(line.annotation)}`"
            yield f":   {' '.join(markdown_of(text.value.value).split())}"


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yields the public methods and properties that the class itself defines and documents."""
    for name, value in vars(kind).items():
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        known = inspect.isfunction(value) or isinstance(value, property)
        if not name.startswith("_") and known and inspect.getdoc(value):
            yield name, value
