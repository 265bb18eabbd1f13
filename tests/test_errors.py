"""A message is one short line, whatever the user's input."""

import errno

import pytest

from wavalign_fast.errors import UserError, did_you_mean, naming, one_line, shorten, shown


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines\tand  more"), "two lines and more"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"), "no such file: a.yaml"),
        (OSError(errno.ENOSPC, "No space left on device", "a.wav"), "a.wav: No space left"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (UserError("red \x1b[31m and \x00"), "red \\x1b[31m and \\x00"),
        (UserError("name \udcff"), "name \\udcff"),
    ],
)
def test_a_message_is_one_line_without_control_codes(error, message):
    assert one_line(error).startswith(message)
    assert one_line(error).isprintable()


def test_a_long_message_keeps_its_beginning_and_its_end():
    line = one_line(UserError("d.jsonl:2: answer is " + "x" * 1_000_000 + ", wanted a number"))
    assert len(line) <= 500
    assert line.startswith("d.jsonl:2: answer is xxx") and line.endswith("xxx, wanted a number")


@pytest.mark.parametrize("length", [0, 1, 59, 60, 61, 62, 1000])
def test_shortened_text_is_at_most_the_limit(length):
    text = "".join(chr(97 + i % 26) for i in range(length))
    short = shorten(text, 60)
    assert short == text if length <= 60 else len(short) == 60 and "..." in short


HUGE = {
    "digits": 10**5000,
    "negative": -(10**5000),
    "text": "x" * 10**6,
    "bytes": b"x" * 10**6,
    "list": ["x" * 10**6] * 1000,
    "mapping": {i: [i] * 99 for i in range(999)},
    "nested": {"a": {"b": {"c": {"d": {"e": 1}}}}},
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_shown_value_is_short_whatever_it_is(kind):
    assert len(shown(HUGE[kind])) < 500


@pytest.mark.parametrize("value", ["abc", 3, 1.5, True, None, [0.9, 1.0], (1, 2), {"a": 1}])
def test_a_small_value_is_shown_as_it_is(value):
    assert shown(value) == repr(value)


def test_suggestions():
    assert did_you_mean("trian", ["train", "say"]) == "; did you mean train?"
    assert did_you_mean("xyz", ["train", "say"]) == ""
    assert did_you_mean("t" * 10**6, ["train"]) == ""


def test_a_key_is_put_in_front_of_every_mistake_once():
    for error in (UserError("3 given"), ValueError("3\ngiven"), UserError("a.b: 3 given")):
        with pytest.raises(UserError) as caught, naming("a.b"):
            raise error
        assert str(caught.value) == "a.b: 3 given"
    with pytest.raises(KeyError), naming("a.b"):
        raise KeyError
