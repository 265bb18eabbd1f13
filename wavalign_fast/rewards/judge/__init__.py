"""A model that judges spoken replies, behind an OpenAI-style chat endpoint; see docs/judge.md."""

from wavalign_fast.rewards.judge.failures import JudgeError
from wavalign_fast.rewards.judge.judge import Judge, Judging
from wavalign_fast.rewards.judge.requests import JudgeRequest
from wavalign_fast.rewards.judge.work import Judgement

__all__ = ["Judge", "JudgeError", "JudgeRequest", "Judgement", "Judging"]
