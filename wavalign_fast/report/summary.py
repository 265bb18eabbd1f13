"""Writes the headline and the findings: what was trained, and with what result."""

from collections.abc import Sequence

from wavalign_fast.report.formatting import duration, escape, percent, points, short
from wavalign_fast.report.runs import Run
from wavalign_fast.report.statistics import difference_interval, mean_value

TEXT, SPEECH, BOTH = "text_accuracy", "speech_matches_text", "speech_says_sum"
GREEDY = "text_accuracy_greedy"
REWARD, ENDED = "reward", "ended"


def headline(runs: Sequence[Run]) -> str:
    """Returns a sentence about the arm with the most answers right in text and in speech."""
    judged = [run for run in runs if TEXT in run.final and SPEECH in run.final]
    if not judged:
        return _rewarded(runs) or f"{_count(len(runs), 'run')}, not evaluated yet"
    best = max(judged, key=_score)
    if TEXT not in best.base or SPEECH not in best.base:
        return (
            f"{best.name} answers {percent(best.final[TEXT])} right in text; its speech says what "
            f"it writes in {percent(best.final[SPEECH])}"
        )
    text = _right_answers(best)
    text_change, speech_change = _direction(best, TEXT), _direction(best, SPEECH)
    speech = "how often its speech follows its text"
    if speech_change == 0:
        joint = ", and none in" if text_change == 0 else "; no clear change in"
        return f"{text}{joint} {speech} ({_before_after(best, SPEECH)})"
    joint = "and" if (speech_change > 0) == (text_change > 0) else "but"
    often = "more often" if speech_change > 0 else "less often"
    return f"{text}, {joint} its speech follows its text {often} ({_before_after(best, SPEECH)})"


def _right_answers(run: Run) -> str:
    change = _direction(run, TEXT)
    if change == 0:
        return f"{run.name} makes no clear change in right answers ({_before_after(run, TEXT)})"
    verb = "raises" if change > 0 else "lowers"
    shares = f"from {percent(run.base[TEXT])} to {percent(run.final[TEXT])}"
    return f"{run.name} {verb} right answers {shares}"


def _before_after(run: Run, key: str) -> str:
    """Returns both shares, and the interval of the change unless it is clear."""
    shares = f"{percent(run.base[key])} before, {percent(run.final[key])} after"
    if _direction(run, key) != 0:
        return shares
    return f"{shares}; 95% interval {points(*_interval(run, key))}"


def _rewarded(runs: Sequence[Run]) -> str:
    """Returns a sentence about the arm with the highest mean reward; empty without rewards."""
    having = [run for run in runs if REWARD in run.final]
    if not having:
        return ""
    best = max(having, key=lambda run: run.final[REWARD])
    return f"{best.name}: {_reward(best)}"


def _reward(run: Run) -> str:
    after = f"{short(run.final[REWARD])} after"
    before = f"{short(run.base[REWARD])} before, " if REWARD in run.base else ""
    return f"mean reward {before}{after} training"


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
    lines = [f"<li>{_finding(run)}</li>" for run in runs if run.final or run.curves]
    return f'<ul class="findings">{"".join(lines)}</ul>'


def _finding(run: Run) -> str:
    name = f"<b>{escape(run.name)}</b>"
    if TEXT not in run.final and REWARD in run.final:
        ended = [_change("answers that end", run, ENDED)] if ENDED in run.final else []
        return f"{name}: {'; '.join([_reward(run), *ended])}."
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
    verdict = {1: "up", -1: "down", 0: f"no clear change: {points(*_interval(run, key))}"}
    change = f"{percent(run.base[key])} → {percent(after)}"
    return f"{what} {change} ({verdict[_direction(run, key)]})"


def _greedy(run: Run) -> str:
    """Returns the text accuracy with greedy decoding, as the model is mostly used."""
    if GREEDY not in run.final:
        return ""
    before = f"{percent(run.base[GREEDY])} → " if GREEDY in run.base else ""
    return f", greedy {before}{percent(run.final[GREEDY])}"


def _interval(run: Run, key: str) -> tuple[float, float]:
    """Returns the 95 % interval of the change of a share from base to trained model."""
    before, after = _items(run.base), _items(run.final)
    return difference_interval(run.base[key], before, run.final[key], after)


def _direction(run: Run, key: str) -> int:
    """Returns 1 or -1 for a clear change of a share, else 0."""
    low, high = _interval(run, key)
    return 1 if low > 0 else -1 if high < 0 else 0


def _items(figures: dict[str, float]) -> float:
    """Returns the number of answers; without one, only a large difference counts as clear."""
    return figures.get("items") or 30.0


def _score(run: Run) -> float:
    """Returns the share of answers that are right and heard, or else the product of both."""
    return run.final.get(BOTH, run.final[TEXT] * run.final[SPEECH])


def _count(number: int, noun: str) -> str:
    words = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven"}
    return f"{words.get(number, number)} {noun}{'' if number == 1 else 's'}"
