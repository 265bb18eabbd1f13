"""Scripts for those who work on this package; nothing of it is installed."""
