"""Reward functions of the user, called in a process of their own and by a deadline."""

from wavalign_fast.rewards.function import RewardError, RewardFunction

__all__ = ["RewardError", "RewardFunction"]
