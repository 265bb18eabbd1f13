"""Judges that ask a server on this machine."""

import pytest

from wavalign_fast.rewards.judge import Judge, JudgeRequest
from wavalign_fast.rewards.judge.options import JudgeOptions

QUICK = {
    "model": "ear-1",
    "first_wait_s": 0.01,
    "longest_wait_s": 0.02,
    "timeout_s": 0.4,
    "deadline_s": 1.0,
    "group_deadline_s": 10.0,
    "attempts": 4,
    "max_missing": 1.0,
}


@pytest.fixture
def make_judge():
    """Makes a judge that asks ``url`` and loses no time; closes it after the test."""
    made = []

    def make(url: str, environ=None, **options) -> Judge:
        made.append(Judge(JudgeOptions(url=url, **(QUICK | options)), environ or {}))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@pytest.fixture
def request_of():
    """Makes requests to judge a reply with a sound of a few bytes."""

    def make(transcript="Hello.", *, question="Say hello.", wav=b"RIFF0000WAVE") -> JudgeRequest:
        return JudgeRequest(question=question, transcript=transcript, wav=wav)

    return make
