"""Text of a run stays text on the page: it becomes neither an element nor an attribute."""

import json
from html.parser import HTMLParser

import pytest

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
    for arm in ("one", "two"):
        path = run / arm
        (path / "wav").mkdir(parents=True)
        head = b"RIFF\x04\x00\x00\x00WAVE"
        (path / "wav" / "a.wav").write_bytes(head)
        (path / "config.yaml").write_text(f"{text}\n{text}", encoding="utf-8")
        records = [{"step": step, text: step, f"perf/{text}": 1, "kl": 1} for step in (1, 2, 3)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (path / "metrics.jsonl").write_text(lines + text, encoding="utf-8")
        figures = {"text_accuracy": 0.5, "speech_matches_text": 0.5, "items": 9, text: 1.0}
        evaluation = {"arm": text + arm, "seed": text, "steps": 3, "seconds": 1.0}
        evaluation |= {"base": figures, "final": {**figures, f"bad {text}": text}}
        (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
        sample = dict.fromkeys(("prompt", "reference", "text", "heard", text), text)
        samples = [{**sample, "wav": "wav/a.wav"}, {**sample, "wav": text}]
        (path / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
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
    assert labels == [f"{payload}{arm} says: {payload}" for arm in ("one", "two")]
