"""Writes one self-contained page about a run: its training, its results and its sound."""

from wavalign_fast.report.page import write_report

__all__ = ["write_report"]
