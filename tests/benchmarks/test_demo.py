"""The cost of the demo: downloads by pip's log, disk of a folder, and the check of a demo."""

import json

import pytest

from benchmarks.bench_demo import check_outcome, downloaded, on_disk
from benchmarks.report.demo import demo_sentence
from tests.benchmarks.synthetic import MACHINE, demo

ACCURACIES = {"base": 0.25, "final": 0.5}


def leave(run_directory, **changed):
    """Writes what `make demo` leaves: a page, and an evaluation of each arm."""
    for arm in ("anchor", "rl-all", "wavalign"):
        (run_directory / arm).mkdir(parents=True)
        found = {part: {"text_accuracy": value} for part, value in (ACCURACIES | changed).items()}
        (run_directory / arm / "evaluation.json").write_text(json.dumps(found))
    (run_directory / "report.html").write_text("<html>")


def test_downloads_are_summed_over_units_and_local_wheels(tmp_path):
    wheel = tmp_path / "torch-2.11.0-cp310-cp310-linux_x86_64.whl"
    wheel.write_bytes(b"x" * 500)
    log = (
        "2026-11-27T10:00:00 Downloading numpy-2.0-cp310.whl (1.5 MB)\n"
        "2026-11-27T10:00:00 Downloading idna-3.whl (70 kB)\n"
        "2026-11-27T10:00:00 Downloading tiny-1.whl (12 bytes)\n"
        f"2026-11-27T10:00:01 Processing {wheel}\n"
        f"2026-11-27T10:00:02 Processing {wheel}\n"
        "2026-11-27T10:00:03 Using cached packaging-24.whl (66 kB)\n"
    )
    assert downloaded(log) == pytest.approx(1.5e6 + 70e3 + 12 + 500)


def test_a_file_with_two_names_counts_once_on_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10_000)
    once = on_disk(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert once >= 10_000
    assert on_disk(tmp_path) == once


def test_a_whole_demo_passes(tmp_path):
    leave(tmp_path / "demo")
    check_outcome(tmp_path / "demo")


def test_a_demo_that_taught_nothing_is_refused(tmp_path):
    leave(tmp_path / "demo", final=0.25)
    with pytest.raises(ValueError, match=r"text accuracy 0\.25, want more than the base's 0\.25"):
        check_outcome(tmp_path / "demo")


@pytest.mark.parametrize(
    ("lost", "named"), [("report.html", "no report.html"), ("rl-all/evaluation.json", "2 eval")]
)
def test_a_demo_without_one_of_its_files_is_refused(tmp_path, lost, named):
    leave(tmp_path / "demo")
    (tmp_path / "demo" / lost).unlink()
    with pytest.raises(ValueError, match=named):
        check_outcome(tmp_path / "demo")


def test_the_sentence_says_what_was_measured_and_where():
    sentence = demo_sentence(demo())
    assert "downloads 0.4 GB and takes 1.5 GB of disk" in sentence
    assert "takes 5 minutes to install and compile, and 11 to train" in sentence
    assert f"{MACHINE['cpu']}, {MACHINE['cores']} cores" in sentence
    assert MACHINE["date"] in sentence
