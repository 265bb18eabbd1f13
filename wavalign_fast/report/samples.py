"""Shows answers to listen to or to read: the text of each model, and what the judge heard."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wavalign_fast.report.audio import locate
from wavalign_fast.report.formatting import escape, short
from wavalign_fast.report.runs import Run
from wavalign_fast.report.tables import BASE_SWATCH, swatch

AUDIO_BUDGET = 3_200_000
"""Maximum bytes of WAV files in the page; base64 makes them a third larger."""


@dataclass(frozen=True)
class Answer:
    """The answer of one model to a prompt."""

    model: str
    swatch: str
    """The mark of the model in the charts."""
    run: Path
    """The run directory that holds the WAV file."""
    sample: dict[str, str]


def sample_cards(runs: Sequence[Run]) -> str:
    """Returns one card per prompt with the answers of base and arms; empty without samples."""
    cards, left_out, spent = [], 0, 0
    for (prompt, reference), answers in _by_prompt(runs).items():
        audio = [_read_audio(answer.run, answer.sample.get("wav")) for answer in answers]
        size = sum(len(data) for data in audio if data)
        if spent + size > AUDIO_BUDGET:
            left_out += 1
            continue
        spent += size
        rows = "".join(_answer(answer, data) for answer, data in zip(answers, audio, strict=True))
        wanted = f"<p class='wanted'>right answer: {escape(reference)}</p>" if reference else ""
        cards.append(f'<article class="card"><h3>{escape(prompt)}</h3>{wanted}{rows}</article>')
    note = (
        f"<p class='note'>{left_out} more prompts are in the wav/ folders of the run, left out to "
        "keep this page small.</p>"
    )
    return f'<div class="cards">{"".join(cards)}</div>{note if left_out else ""}' if cards else ""


def _by_prompt(runs: Sequence[Run]) -> dict[tuple[str, str], list[Answer]]:
    """Groups the answers of the arms by prompt; before them that of their base, once."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for index, run in enumerate(runs):
        for sample in run.samples:
            answer = Answer(run.name, swatch(index), run.path, sample)
            groups.setdefault(_prompt(sample), []).append(answer)
    bases: dict[tuple[str, str], Answer] = {}
    for run in runs:
        for sample in run.base_samples:
            answer = Answer("base", BASE_SWATCH, run.path, sample)
            bases.setdefault(_prompt(sample), answer)
    for prompt, answers in groups.items():
        if prompt in bases:
            answers.insert(0, bases[prompt])
    return groups


def _prompt(sample: dict[str, str]) -> tuple[str, str]:
    return sample.get("prompt", ""), sample.get("reference", "")


def _read_audio(run: Path, name: str | None) -> bytes | None:
    path = locate(run, name) if name else None
    return path.read_bytes() if isinstance(path, Path) else None


def _answer(answer: Answer, audio: bytes | None) -> str:
    name, sample = answer.model, answer.sample
    text, heard = sample.get("text", ""), sample.get("heard")
    if heard is None and "wav" not in sample:
        return _written(answer)
    right = (
        mark(_same(text, sample["reference"]), "right", "wrong") if "reference" in sample else ""
    )
    if heard is None:
        hearing, says = "<em>not judged</em>", f"{name}, not judged"
    else:
        agrees = mark(_same(text, heard), "same as text", "not what it wrote")
        hearing = f"{escape(heard) or '<em>nothing</em>'} {agrees}"
        says = f"{name} says: {heard}"
    return (
        f'<div class="answer"><h4>{answer.swatch}{escape(name)}</h4>{player(audio, says)}<dl>'
        f"<dt>wrote</dt><dd>{escape(text) or '<em>nothing</em>'} {right}</dd>"
        f"<dt>heard</dt><dd>{hearing}</dd></dl></div>"
    )


def player(audio: bytes | None, says: str) -> str:
    """Returns a player with a WAV file in it, or a word that there is none.

    Args:
        says: what is said, for those who do not see the player.
    """
    if not audio:
        return "<p class='silent'>no audio</p>"
    data = base64.b64encode(audio).decode()
    return (
        f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}" '
        f'aria-label="{escape(says)}"></audio>'
    )


def _written(answer: Answer) -> str:
    """Shows an answer of a task without sound, whose reference need not be the only right one."""
    text, reward = answer.sample.get("text", ""), answer.sample.get("reward")
    rewarded = "" if reward is None else f"<dt>reward</dt><dd>{escape(_rounded(reward))}</dd>"
    return (
        f'<div class="answer"><h4>{answer.swatch}{escape(answer.model)}</h4><dl>'
        f"<dt>wrote</dt><dd>{escape(text) or '<em>nothing</em>'}</dd>{rewarded}</dl></div>"
    )


def _rounded(number: str) -> str:
    try:
        return short(float(number))
    except ValueError:  # the file is damaged
        return number


def _same(one: str, other: str) -> bool:
    return one.split() == other.split()


def mark(good: bool, yes: str, no: str) -> str:
    """Marks a verdict by sign, word and colour."""
    return f'<b class="yes">✓ {yes}</b>' if good else f'<b class="no">✗ {no}</b>'
