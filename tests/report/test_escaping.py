"""Text of a run stays text on the page: it becomes neither an element nor an attribute."""

import json
from html.parser import HTMLParser

import pytest
import yaml

from wavalign_fast.report import write_report

PAYLOADS = (
    '"><img src=x onerror=alert(1)>',
    '" onfocus="alert(1)" autofocus="',
    "' onfocus='alert(1)' autofocus='",
    "</script></style></pre></title><script>alert(1)</script>",
    "<!-- <svg onload=alert(1)> ]]> & &lt; $title ${x} \\u003cscript>",
)
HARMLESS = "harmless"


class Structure(HTMLParser):
    """Elements with the names of their attributes, and all values and text."""

    def __init__(self):
        super().__init__()
        self.elements, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, [name for name, _ in attrs]))
        self.texts += [value or "" for _, value in attrs]

    def handle_endtag(self, tag):
        self.elements.append(f"/{tag}")

    def handle_data(self, data):
        self.texts.append(data)


def page(root, text):
    """Returns the page of a run in which every text is ``text``."""
    run = root / text.replace("/", "|")[:200]
    run.mkdir(parents=True)
    for arm in ("one", "two", "three"):
        path = run / arm
        (path / "wav").mkdir(parents=True)
        head = b"RIFF\x04\x00\x00\x00WAVE"
        (path / "wav" / "a.wav").write_bytes(head)
        # One configuration is read; the other is no YAML, and is shown as it is.
        config = {"train": {"seed": f"{text}{arm}"}, text: [text, {text: text}]}
        config_text = yaml.safe_dump(config) if arm != "two" else f"{text}\n\t: {{\n{text}"
        (path / "config.yaml").write_text(config_text, encoding="utf-8")
        start = dict.fromkeys(("started", "command", "commit", "cpu", "system"), text)
        start |= {"reward_scale": text, "gpus": [text, text], "versions": {text: text}, "cores": 2}
        provenance = {"starts": [start, {**start, "command": f"{text}{arm}"}]}
        (path / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
        records = [{"step": step, text: step, f"perf/{text}": 1, "kl": 1} for step in (1, 2, 3)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (path / "metrics.jsonl").write_text(lines + text, encoding="utf-8")
        figures = {"text_accuracy": 0.5, "speech_matches_text": 0.5, "items": 9, text: 1.0}
        evaluation = {"arm": text + arm, "seed": text, "steps": 3, "seconds": 1.0}
        evaluation |= {"base": figures, "final": {**figures, f"bad {text}": text}}
        (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
        sample = dict.fromkeys(("prompt", "reference", "text", "heard", text), text)
        samples = [{**sample, "wav": "wav/a.wav"}, {**sample, "wav": text}]
        for name in ("samples.json", "base_samples.json"):
            (path / name).write_text(json.dumps(samples), encoding="utf-8")
    structure = Structure()
    structure.feed(write_report(run).read_text(encoding="utf-8"))
    structure.close()
    return structure


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_hostile_run_gives_the_same_page_as_a_harmless_one(tmp_path, payload):
    hostile, harmless = page(tmp_path / "a", payload), page(tmp_path / "b", HARMLESS)
    assert hostile.elements == harmless.elements
    assert sum(payload in text for text in hostile.texts) >= 30
    labels = [text for text in hostile.texts if " says: " in text]
    names = ("base", *(f"{payload}{arm}" for arm in ("one", "three", "two")))
    assert sorted(labels) == sorted(f"{name} says: {payload}" for name in names)
