"""What a speech recogniser hears, against the text."""

import json

import pytest

from wavalign_fast.evaluation.hearing import agreement, heard
from wavalign_fast.evaluation.stages import StageFile
from wavalign_fast.speech.wave_files import write_wave


@pytest.mark.parametrize(
    ("text", "said", "value"),
    [
        ("The red fox.", "red fox", 1),
        ("one two three four", "one two tree four", 0.75),
        ("one two", "one", 0.5),
        ("one", "one and two and three", 0),
        ("", "", 1),
        ("...", "noise", 0),
    ],
)
def test_agreement_is_one_minus_the_word_error_rate(text, said, value):
    assert agreement(text, said) == value


def test_a_failure_is_noted_and_tried_again(tmp_path):
    paths = {}
    for name, level in (("loud", 0.9), ("soft", 0.1)):
        paths[name] = tmp_path / f"{name}.wav"
        write_wave(paths[name], [level, -level] * 50, 16000)
    asked = []

    def recognise(wave, rate):
        asked.append((round(float(wave[0]), 1), rate))
        if len(asked) == 1:
            raise RuntimeError("too loud")
        return None if len(asked) == 2 else "hello"

    file = StageFile(tmp_path, "heard", keys=("id", "sound"))
    texts = []
    for _ in range(3):
        assert len(list(heard(recognise, paths, file))) == (2 if len(texts) < 2 else 0)
        texts.append([one["text"] for one in file.read().values()])
    assert texts == [[None, None], ["hello", "hello"], ["hello", "hello"]]
    assert asked == [(0.9, 16000), (0.1, 16000)] * 2
    causes = [json.loads(line).get("cause") for line in file.path.read_text().splitlines()]
    assert causes[:2] == ["RuntimeError: too loud", "TypeError: NoneType returned, wanted text"]
