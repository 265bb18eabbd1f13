"""Writes the headline and the findings: what was trained, and with what result."""

from collections.abc import Sequence

from wavalign_fast.report.formatting import duration, escape, percent, short
from wavalign_fast.report.runs import Run
from wavalign_fast.report.statistics import clear_change, mean_value

TEXT, SPEECH, BOTH = "text_accuracy", "speech_matches_text", "speech_says_sum"
GREEDY = "text_accuracy_greedy"


def headline(runs: Sequence[Run]) -> str:
    """Returns a sentence about the arm with the most answers right in text and in speech."""
    judged = [run for run in runs if TEXT in run.final and SPEECH in run.final]
    if not judged:
        return f"{_count(len(runs), 'run')}, not evaluated yet"
    best = max(judged, key=_score)
    if TEXT not in best.base or SPEECH not in best.base:
        return (
            f"{best.name} answers {percent(best.final[TEXT])} right in text; its speech says what "
            f"it writes in {percent(best.final[SPEECH])}"
        )
    items = _items(best)
    text = _sentence_text(best, items)
    speech_before, speech_after = best.base[SPEECH], best.final[SPEECH]
    change = clear_change(speech_before, speech_after, items)
    numbers = f"{percent(speech_before)} before, {percent(speech_after)} after"
    if change == 0:
        return f"{text}, and its speech follows its text as before ({numbers})"
    verb = "follows its text more often" if change > 0 else "follows its text less often"
    joint = "and" if change > 0 else "but"
    return f"{text}, {joint} its speech {verb} ({numbers})"


def lead(runs: Sequence[Run]) -> str:
    """Returns a sentence about arms, steps and time."""
    steps = sorted({run.steps for run in runs})
    span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    times = [run.seconds for run in runs if run.seconds is not None]
    time = f", {duration(sum(times))} of training together" if times else ""
    if len(runs) == 1:
        time = time.replace(" together", "")
        return f"One arm, {span} steps{time}."
    return f"{_count(len(runs), 'arm')} from one base model, {span} steps each{time}."


def findings(runs: Sequence[Run]) -> str:
    """Returns one line per arm: how text and speech changed, and whether beyond chance."""
    lines = [f"<li>{_finding(run)}</li>" for run in runs if TEXT in run.final or run.curves]
    return f'<ul class="findings">{"".join(lines)}</ul>'


def _finding(run: Run) -> str:
    name = f"<b>{escape(run.name)}</b>"
    if TEXT not in run.final:
        rewards = run.curves.get("reward/mean")
        if not rewards:
            return f"{name}: no evaluation."
        tenth = -(-len(rewards) // 10)
        first, last = mean_value(rewards[:tenth]), mean_value(rewards[-tenth:])
        return (
            f"{name}: no evaluation; mean reward {short(first)} in the first tenth of the steps, "
            f"{short(last)} in the last."
        )
    parts = [_change("text", run, TEXT) + _greedy(run)]
    if SPEECH in run.final:
        parts.append(_change("speech that says what the text says", run, SPEECH))
    if BOTH in run.final:
        parts.append(f"the right answer is heard in {percent(run.final[BOTH])}")
    return f"{name}: {'; '.join(parts)}."


def _change(what: str, run: Run, key: str) -> str:
    after = run.final[key]
    if key not in run.base:
        return f"{what} {percent(after)}"
    before = run.base[key]
    change = clear_change(before, after, _items(run))
    verdict = {1: "up", -1: "down", 0: "no clear change"}[change]
    return f"{what} {percent(before)} → {percent(after)} ({verdict})"


def _greedy(run: Run) -> str:
    """Returns the text accuracy with greedy decoding, as the model is mostly used."""
    if GREEDY not in run.final:
        return ""
    before = f"{percent(run.base[GREEDY])} → " if GREEDY in run.base else ""
    return f", greedy {before}{percent(run.final[GREEDY])}"


def _sentence_text(run: Run, items: float) -> str:
    before, after = run.base[TEXT], run.final[TEXT]
    change = clear_change(before, after, items)
    if change == 0:
        return f"{run.name} leaves right answers at {percent(after)} ({percent(before)} before)"
    verb = "raises" if change > 0 else "lowers"
    return f"{run.name} {verb} right answers from {percent(before)} to {percent(after)}"


def _items(run: Run) -> float:
    """Returns the number of answers; without one, only a large difference counts as clear."""
    return run.final.get("items") or 30.0


def _score(run: Run) -> float:
    """Returns the share of answers that are right and heard, or else the product of both."""
    return run.final.get(BOTH, run.final[TEXT] * run.final[SPEECH])


def _count(number: int, noun: str) -> str:
    words = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven"}
    return f"{words.get(number, number)} {noun}{'' if number == 1 else 's'}"
