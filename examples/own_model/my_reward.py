"""The reward: how much of an answer's text is right, from 0 to 1."""

from difflib import SequenceMatcher


def score(answers):
    return [SequenceMatcher(None, a["text"], a["record"]["colour"]).ratio() for a in answers]
