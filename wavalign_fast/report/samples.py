"""Shows answers to listen to: the text of each model, and what the judge heard."""

import base64
from collections.abc import Sequence
from pathlib import Path

from wavalign_fast.report.audio import locate
from wavalign_fast.report.formatting import escape
from wavalign_fast.report.runs import Run
from wavalign_fast.report.tables import swatch

AUDIO_BUDGET = 3_200_000
"""Maximum bytes of WAV files in the page; base64 makes them a third larger."""


def sample_cards(runs: Sequence[Run]) -> str:
    """Returns one card per prompt with the answer of every arm; empty without samples."""
    cards, left_out, spent = [], 0, 0
    for (prompt, reference), answers in _by_prompt(runs).items():
        audio = [_read_audio(runs[index].path, answer.get("wav")) for index, answer in answers]
        size = sum(len(data) for data in audio if data)
        if spent + size > AUDIO_BUDGET:
            left_out += 1
            continue
        spent += size
        rows = "".join(
            _answer(runs[index].name, index, answer, data)
            for (index, answer), data in zip(answers, audio, strict=True)
        )
        wanted = f"<p class='wanted'>right answer: {escape(reference)}</p>" if reference else ""
        cards.append(f'<article class="card"><h3>{escape(prompt)}</h3>{wanted}{rows}</article>')
    note = (
        f"<p class='note'>{left_out} more prompts are in the wav/ folders of the run, left out to "
        "keep this page small.</p>"
    )
    return f'<div class="cards">{"".join(cards)}</div>{note if left_out else ""}' if cards else ""


def _by_prompt(runs: Sequence[Run]) -> dict[tuple[str, str], list[tuple[int, dict[str, str]]]]:
    groups: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}
    for index, run in enumerate(runs):
        for sample in run.samples:
            key = (sample.get("prompt", ""), sample.get("reference", ""))
            groups.setdefault(key, []).append((index, sample))
    return groups


def _read_audio(run: Path, name: str | None) -> bytes | None:
    path = locate(run, name) if name else None
    return path.read_bytes() if isinstance(path, Path) else None


def _answer(name: str, index: int, answer: dict[str, str], audio: bytes | None) -> str:
    text, heard = answer.get("text", ""), answer.get("heard")
    right = (
        _mark(_same(text, answer["reference"]), "right", "wrong") if "reference" in answer else ""
    )
    if heard is None:
        hearing, says = "<em>not judged</em>", f"{name}, not judged"
    else:
        agrees = _mark(_same(text, heard), "same as text", "not what it wrote")
        hearing = f"{escape(heard) or '<em>nothing</em>'} {agrees}"
        says = f"{name} says: {heard}"
    if audio:
        data = base64.b64encode(audio).decode()
        player = (
            f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}" '
            f'aria-label="{escape(says)}"></audio>'
        )
    else:
        player = "<p class='silent'>no audio</p>"
    return (
        f'<div class="answer"><h4>{swatch(index)}{escape(name)}</h4>{player}<dl>'
        f"<dt>wrote</dt><dd>{escape(text) or '<em>nothing</em>'} {right}</dd>"
        f"<dt>heard</dt><dd>{hearing}</dd></dl></div>"
    )


def _same(one: str, other: str) -> bool:
    return one.split() == other.split()


def _mark(good: bool, yes: str, no: str) -> str:
    """Marks a verdict by sign, word and colour."""
    return f'<b class="yes">✓ {yes}</b>' if good else f'<b class="no">✗ {no}</b>'
