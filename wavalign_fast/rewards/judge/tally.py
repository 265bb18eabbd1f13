"""Counts what the judge was asked and what it cost."""

import math
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The counts of some calls. Latency is that of the HTTP exchange that gave the scores."""

    asked: int = 0
    """Replies to be judged."""
    calls: int = 0
    """Scores to be asked for: replies × rubrics × samples."""
    cached: int = 0
    """Calls that needed no request: they were on disk, or equal to another one."""
    retried: int = 0
    """Requests that were sent again."""
    missing: Counter[str] = field(default_factory=Counter)
    """Replies without a score, by cause."""
    latencies: list[float] = field(default_factory=list)
    """Seconds."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    """Replies that did not say what they cost."""
    spread: float | None = None
    """The largest difference between samples of one request; ``None`` if each has one."""

    def metrics(self, price_in: float, price_out: float) -> dict[str, float]:
        """Returns them under the names of docs/judge.md.

        Args:
            price_in: of a million tokens that are read.
            price_out: of a million tokens that are written.
        """
        found = {
            "judge/asked": float(self.asked),
            "judge/calls": float(self.calls),
            "judge/cached": float(self.cached),
            "judge/retried": float(self.retried),
            "judge/missing": float(self.missing.total()),
            "judge/prompt_tokens": float(self.prompt_tokens),
            "judge/completion_tokens": float(self.completion_tokens),
            "judge/without_usage": float(self.without_usage),
        }
        found |= {f"judge/missing_{cause}": float(n) for cause, n in sorted(self.missing.items())}
        if self.latencies:
            found["judge/latency_p50_s"] = quantile(self.latencies, 0.5)
            found["judge/latency_p95_s"] = quantile(self.latencies, 0.95)
        if price_in or price_out:
            cost = self.prompt_tokens * price_in + self.completion_tokens * price_out
            found["judge/cost"] = cost / 1e6
        if self.spread is not None:
            found["judge/spread_max"] = self.spread
        return found


def quantile(values: list[float], share: float) -> float:
    """Returns the smallest of ``values`` that at least ``share`` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
