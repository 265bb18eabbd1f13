"""The speech chain: features, codebook, decoder and judge."""

import importlib.util
import os
import random
import shutil

import numpy as np
import pytest

from wavalign_fast.recipes.spoken_sums import judge as judging
from wavalign_fast.recipes.spoken_sums import judge_workers, synthesis
from wavalign_fast.recipes.spoken_sums import recogniser as recognition
from wavalign_fast.recipes.spoken_sums.assets import load_speech_assets
from wavalign_fast.recipes.spoken_sums.data import answer_text
from wavalign_fast.recipes.spoken_sums.decoder import SILENCE, decode
from wavalign_fast.recipes.spoken_sums.mel import FFT_SIZE, NUM_MELS, SAMPLE_RATE, mel_filters
from wavalign_fast.recipes.spoken_sums.tokenizer import encode, nearest_centroids

ASSETS = load_speech_assets()

needs_pocketsphinx = pytest.mark.skipif(
    not recognition.recogniser_installed(), reason="pocketsphinx is not installed"
)


def test_mel_filters_have_unit_area_and_rise_in_frequency():
    filters = mel_filters()
    assert filters.shape == (NUM_MELS, FFT_SIZE // 2 + 1)
    wide = filters[NUM_MELS // 2 :]
    assert wide.sum(1) * SAMPLE_RATE / FFT_SIZE == pytest.approx(1.0, abs=0.05)
    peaks = filters.argmax(1)
    assert (np.diff(peaks) >= 0).all() and peaks[-1] * SAMPLE_RATE / FFT_SIZE > 6500


def test_nearest_centroid_is_the_nearest():
    generator = np.random.default_rng(0)
    centroids = generator.normal(size=(20, 6)).astype(np.float32)
    blocks = generator.normal(size=(50, 6)).astype(np.float32)
    distance = ((blocks[:, None] - centroids[None]) ** 2).sum(-1)
    assert (nearest_centroids(blocks, centroids) == distance.argmin(1)).all()


def test_decoded_speech_has_the_length_and_most_codes_of_its_source():
    kept = total = 0
    for number in (7, 42, 93):
        codes = ASSETS.recordings[number][1]
        waveform = decode(codes, ASSETS.centroids)
        assert waveform.dtype == np.float32 and np.abs(waveform).max() <= 1
        assert abs(len(waveform) / SAMPLE_RATE - 0.08 * len(codes)) <= 0.02
        again = encode(waveform, ASSETS.centroids)[: len(codes)]
        kept += (again == np.array(codes)[: len(again)]).sum()
        total += len(again)
    assert kept / total > 0.5  # by chance: 1/256


def test_decoding_is_deterministic_and_short_speech_is_silence():
    codes = ASSETS.recordings[5][0]
    assert (decode(codes, ASSETS.centroids) == decode(codes, ASSETS.centroids)).all()
    assert decode(codes[:2], ASSETS.centroids) is SILENCE


@needs_pocketsphinx
def test_recordings_are_heard_whatever_was_heard_before():
    numbers = random.Random(0).sample(range(99), 8)
    recogniser = recognition.Recogniser(ASSETS.centroids)
    heard = [recogniser.hear(ASSETS.recordings[number][1]) for number in numbers]
    assert heard == [answer_text(number) for number in numbers]
    # Left-over state of earlier answers changes the scores sooner than the words.
    codes = ASSETS.recordings[50][0]
    recogniser.hear(codes)
    score = recogniser.decoder.hyp().score
    recogniser.hear(ASSETS.recordings[20][2])
    recogniser.hear(codes)
    assert recogniser.decoder.hyp().score == score
    assert recogniser.hear(()) == ""


@pytest.mark.slow
@needs_pocketsphinx
def test_every_number_can_be_heard_as_it_was_recorded():
    """The slowest recordings are all understood; of the faster ones, two are not (1 and 98)."""
    judge = judging.Judge(ASSETS.centroids, workers=1)
    heard = judge.hear([by_rate[-1] for by_rate in ASSETS.recordings])
    assert heard == [answer_text(number) for number in range(len(ASSETS.recordings))]


@needs_pocketsphinx
def test_workers_hear_the_same_and_each_answer_once(monkeypatch):
    scrambled = [
        random.Random(number).sample(ASSETS.recordings[number][0], 12) for number in range(6)
    ]
    answers = [*scrambled, *scrambled]
    monkeypatch.setattr(judging, "POOL_THRESHOLD", 2)
    monkeypatch.setattr(judge_workers, "CHUNK", 2)
    pooled = judging.Judge(ASSETS.centroids, workers=2)
    alone = judging.Judge(ASSETS.centroids, workers=1)
    heard = pooled.hear(answers)
    assert heard == alone.hear(answers)
    monkeypatch.setattr(judging, "check_recogniser", lambda: pytest.fail("judged it again"))
    assert pooled.hear(answers[:3]) == heard[:3]


def test_missing_pocketsphinx_is_named_only_when_it_is_needed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    judge = judging.Judge(ASSETS.centroids)
    assert judge.hear([]) == []
    with pytest.raises(ModuleNotFoundError, match="pip install pocketsphinx"):
        judge.hear([ASSETS.recordings[0][0]])


def test_missing_flite_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="apt-get install flite"):
        synthesis.synthesize("one", 1.0, tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no voice rms' >&2; exit 3", "flite ended with status 3: no voice rms"),
        ("exit 0", "flite ended with status 0"),
        ("kill -9 $$", "flite ended with status -9"),
    ],
)
def test_a_flite_that_fails_is_one_line(monkeypatch, tmp_path, script, message):
    flite = tmp_path / "flite"
    flite.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    flite.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        synthesis.synthesize("one", 1.0, tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("no", name="sklearn"), "sklearn is missing: install it with `pip"),
        (OSError("libgomp.so.1"), "scikit-learn cannot be imported: OSError: libgomp.so.1"),
        (ValueError("numpy.dtype size changed"), "cannot be imported: ValueError: numpy.dtype"),
        (SystemExit(2), "cannot be imported: SystemExit: 2"),
    ],
)
def test_a_package_of_the_build_that_fails_is_one_line(failing_import, error, message):
    failing_import("sklearn", error)
    with pytest.raises(RuntimeError, match=message):
        synthesis.build_speech_assets(0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_flite_still_gives_the_shipped_codes(tmp_path):
    kept = total = 0
    for number in (0, 13, 58, 98):
        for rate, stretch in enumerate((0.9, 1.0, 1.1)):
            waveform = synthesis.synthesize(f"{answer_text(number)}.", stretch, tmp_path)
            codes = encode(waveform, ASSETS.centroids).tolist()
            shipped = ASSETS.recordings[number][rate]
            assert len(codes) == len(shipped)
            kept += sum(a == b for a, b in zip(codes, shipped, strict=True))
            total += len(shipped)
    assert kept / total > 0.98
