"""Spoken arithmetic: a small model that answers sums in text and speech."""
