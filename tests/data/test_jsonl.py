"""JSONL: an error is one short line with file and line number, whatever the line holds."""

import json

import pytest

from wavalign_fast.data import jsonl
from wavalign_fast.data.jsonl import read_jsonl
from wavalign_fast.errors import one_line

GOOD = b'{"prompt": "one", "answer": "two"}\n'


def read(path, content):
    path.write_bytes(content)
    return list(read_jsonl(path, keys=("prompt", "answer")))


def line(**extra):
    record = {"prompt": "one", "answer": "two"}
    return json.dumps(record)[:-1] + "".join(f', "{k}": {v}' for k, v in extra.items()) + "}"


BAD = {
    "digits": (line(id="1" * 5000), "a number of 5000 digits: 111"),
    "exponent": (line(id="1e999"), "1e999 is too large for a floating-point number"),
    "long exponent": (line(id="-1" + "0" * 999 + ".5"), "is too large for a floating-point number"),
    "nan": (line(id="NaN"), "malformed JSON: NaN is not a JSON number"),
    "infinity": (line(id="-Infinity"), "malformed JSON: -Infinity is not a JSON number"),
    "brackets": (line(id="[" * 200_000 + "]" * 200_000), "nested too deep: {"),
    "braces": (line(id='{"a":' * 200_000 + "1" + "}" * 200_000), "nested too deep: {"),
    "open brackets": ("[" * 200_000, "nested too deep: [[["),
    "same key twice": (line(prompt='"three"'), "key 'prompt' is given twice"),
    "same key within": (line(id='{"a": 1, "a": 2}'), "key 'a' is given twice"),
    "half a pair": ('{"prompt": "one \\ud800", "answer": "two"}', "half of a surrogate pair"),
    "no object": ("[" + "1," * 100_000 + "1]", "is not a JSON object"),
    "a number": ("1" * 400, "is not a JSON object"),
    "no key": (json.dumps({f"k{i}": 1 for i in range(99_999)}), "key 'prompt' is missing; keys"),
    "a list": ('{"prompt": [' + "1," * 99_999 + '1], "answer": "two"}', "prompt is [1, 1, 1"),
    "not closed": (
        '{"prompt": "' + "x" * 99_999,
        "malformed JSON (Unterminated string starting at column 12)",
    ),
    "nul": (b'{"prompt": "\x00", "answer": "two"}', "malformed JSON (Invalid control character"),
    "nul around": (b"\x00" * 99, "malformed JSON"),
    "latin-1": (b'{"prompt": "caf\xe9", "answer": "two"}', ", is not UTF-8 text"),
    "utf-16": (GOOD.decode().encode("utf-16"), ", is not UTF-8 text"),
    "encoded surrogate": (b'{"prompt": "\xed\xa0\x80", "answer": "two"}', ", is not UTF-8 text"),
    "two objects": (GOOD.strip() * 2, "malformed JSON (Extra data"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named_in_one_short_line(tmp_path, kind):
    bad, message = BAD[kind]
    bad = bad if isinstance(bad, bytes) else bad.encode()
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "d.jsonl", GOOD + b"\n" + bad)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'd.jsonl'}:3: ") and message in said
    assert "\n" not in said and len(said) < len(str(tmp_path)) + 400


@pytest.mark.parametrize("name", ["/proc/self/mem", "a\0b", "none.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OSError, ValueError)) as caught:
        list(read_jsonl(name, keys=("prompt",)))
    assert name.encode("unicode_escape").decode() in one_line(caught.value)


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE", 1000)
    with pytest.raises(ValueError, match=r"d\.jsonl:2: longer than 1000 bytes"):
        read(tmp_path / "d.jsonl", GOOD + b"x" * 5000)
    assert len(read(tmp_path / "d.jsonl", GOOD + GOOD[:-1] + b" " * (1000 - len(GOOD)))) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD,
        b"\xef\xbb\xbf\n" + GOOD,
        b"\n  \n" + GOOD[:-1],
        GOOD.replace(b"\n", b"\r\n"),
        b"\t" + GOOD,
    ],
)
def test_byte_order_marks_blank_lines_and_line_ends_do_not_matter(tmp_path, content):
    ((_, record),) = read(tmp_path / "d.jsonl", content)
    assert record == {"prompt": "one", "answer": "two"}


def test_further_keys_and_whole_pairs_pass(tmp_path):
    text = '{"prompt": "\\ud83d\\ude00", "answer": "\\u2028", "id": 1e300, "n": -0.5, "m": null}'
    ((_, record),) = read(tmp_path / "d.jsonl", text.replace("\\u2028", "a\\u2028b").encode())
    assert record["prompt"] == "\U0001f600" and record["id"] == 1e300 and record["m"] is None
