"""One self-contained page about a run: what was trained, what came out, how it sounds."""

from wavalign_fast.report.page import write_report

__all__ = ["write_report"]
